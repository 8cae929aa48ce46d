#!/usr/bin/env python
"""As the command ``kd-search demo``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
