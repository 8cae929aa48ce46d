"""Train or evaluate with the methods of this project: python train_net.py --config-file ..."""

from kd_search.utils.threads import wait_passively

wait_passively()

import mine  # noqa: E402, F401  registers the method, networks and data set

from kd_search.engine import train_main  # noqa: E402

if __name__ == "__main__":
    train_main()
