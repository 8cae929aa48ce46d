"""The path from a data set to an evaluated, exported student."""

from kd_search.pipeline.id_table import build_table

__all__ = ["build_table"]
