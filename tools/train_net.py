#!/usr/bin/env python
"""Train or evaluate a person search model, or a plain detector.

    python tools/train_net.py --config-file configs/prw/r50_c4.yaml --num-gpus 2
    python tools/train_net.py --config-file ... --resume
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc_per_node 2 tools/train_net.py --config-file ...

``--import MODULE`` imports a package that registers methods, networks or data sets of its own.
Without a GPU, ``--num-gpus`` is the number of CPU processes. Ctrl-C stops after the running
iteration, with a checkpoint; ``--resume`` continues exactly from there.
"""

from kd_search.utils.threads import wait_passively

wait_passively()  # before the others load torch

from kd_search.engine import train_main  # noqa: E402

if __name__ == "__main__":
    train_main()
