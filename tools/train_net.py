#!/usr/bin/env python3
"""Train or evaluate a network: ``kd-search train``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
