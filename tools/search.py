#!/usr/bin/env python3
"""Search for a person in a folder of pictures: ``kd-search search``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
