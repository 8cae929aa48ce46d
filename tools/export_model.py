#!/usr/bin/env python3
"""Export a trained network to one file: ``kd-search export``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
