#!/usr/bin/env python
"""Train or evaluate with these methods: python projects/Rivals/train_net.py --config-file ..."""

from kd_search.utils.threads import wait_passively

wait_passively()

import rivals  # noqa: E402, F401  registers keys, terms and companions

from kd_search.engine import train_main  # noqa: E402

if __name__ == "__main__":
    train_main()
