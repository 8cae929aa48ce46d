#!/usr/bin/env python3
"""Pre-compute the table of a teacher's embeddings: ``kd-search table``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["table", *sys.argv[1:]]))
