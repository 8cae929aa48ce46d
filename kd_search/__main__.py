"""``python -m kd_search``: the command ``kd-search``."""

import sys

from kd_search.cli import main

if __name__ == "__main__":
    sys.exit(main())
