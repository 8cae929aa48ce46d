"""A teacher's ID table for the networks of tests/tiny.py."""

import torch
from tiny import NUM_IDS
from torch import nn

from kd_search.distillation.methods.id_table import IDTableFile


def write_table(path, num_ids=NUM_IDS, dim=8, person_ids=None):
    torch.manual_seed(3)
    rows = nn.functional.normalize(torch.randn(num_ids, dim), dim=1)
    unlabelled = nn.functional.normalize(torch.randn(3, dim), dim=1)
    file = IDTableFile(
        rows=rows,
        counts=torch.ones(num_ids, dtype=torch.int64),
        unlabelled=unlabelled,
        person_ids=list(range(num_ids)) if person_ids is None else person_ids,
    )
    file.save(path)
    return file
