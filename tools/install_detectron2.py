#!/usr/bin/env python3
"""Install Detectron2 0.5 as pure Python: ``kd-search install-detectron2``.

Runs before kd_search and its requirements are installed, with the standard library alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kd_search.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["install-detectron2", *sys.argv[1:]]))
