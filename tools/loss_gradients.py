#!/usr/bin/env python3
"""Print the gradient norm of each loss at the student's backbone: ``kd-search gradients``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["gradients", *sys.argv[1:]]))
