#!/usr/bin/env python3
"""Write a data set in another format: ``kd-search convert``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
