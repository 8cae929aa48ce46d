#!/usr/bin/env python3
"""Print the counts of a data set and its defects: ``kd-search check``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
