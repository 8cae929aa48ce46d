#!/usr/bin/env python
"""Train or evaluate query-guided networks: python projects/QEEPS/train_net.py --config-file ..."""

from kd_search.utils.threads import wait_passively

wait_passively()

import qeeps  # noqa: E402, F401  registers keys and networks

from kd_search.engine import train_main  # noqa: E402

if __name__ == "__main__":
    train_main()
