#!/usr/bin/env python3
"""Check that this environment has every version that requirements-dev.txt pins.

Usage: ``python tools/check_environment.py [--quiet] [--python-only]``, see ``kd-search doctor``.
The Makefile runs it before it uses an active environment, with the standard library alone.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kd_search.cli import main  # noqa: E402

if __name__ == "__main__":
    pins = ["--pins", str(ROOT / "requirements-dev.txt")]
    sys.exit(main(["doctor", *pins, *sys.argv[1:]]))
