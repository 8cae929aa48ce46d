#!/usr/bin/env python3
"""Plot evaluated runs: ``kd-search plot``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["plot", *sys.argv[1:]]))
