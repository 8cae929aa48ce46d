#!/usr/bin/env python3
"""Test whether the difference between two evaluated runs could be chance: ``kd-search compare``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
