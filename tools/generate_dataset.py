#!/usr/bin/env python3
"""Generate a data set from a seed: ``kd-search generate``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
