#!/usr/bin/env python3
"""Score detections and embeddings from files, or a trained network: ``kd-search evaluate``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
