"""Randomness that depends on nothing but the seed, the iteration and the rank."""

import os
import random

import numpy as np
import torch
from detectron2.utils import comm


def draw_seed(seed: int) -> int:
    """Return ``seed``; where it is negative, one that rank 0 draws and all ranks share.

    A collective call: every rank must make it.
    """
    if seed >= 0:
        return int(seed)
    return comm.all_gather(int.from_bytes(os.urandom(4), "little") >> 1)[0]


def seed_everything(seed: int, position: int, rank: int = 0) -> None:
    """Seed torch (all devices), NumPy and Python from three non-negative numbers.

    Called before every training step, so that a resumed run draws what a run without interruption
    would have drawn, without storing the state of any generator.
    """
    # SeedSequence is stable over NumPy versions and machines, and mixes neighbouring numbers well.
    words = np.random.SeedSequence((seed, position, rank)).generate_state(4)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))
