#!/usr/bin/env python3
"""Draw the ranked results of an evaluation: ``kd-search show``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["show", *sys.argv[1:]]))
