"""Distillation by ID table (Munjal et al., BMVC 2019)."""

from kd_search.distillation.methods.id_table import config
from kd_search.distillation.methods.id_table.file import IDTableFile, TableMismatchError
from kd_search.distillation.methods.id_table.term import IDTableTerm

__all__ = [
    "IDTableFile",
    "IDTableTerm",
    "TableMismatchError",
    "config",
]
