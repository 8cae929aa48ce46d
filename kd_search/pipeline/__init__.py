"""The path from a data set to an evaluated, exported student."""

from typing import Any

__all__ = ["build_table"]


def __getattr__(name: str) -> Any:
    # Not at the top: the command line lists networks without torch.
    if name == "build_table":
        from kd_search.pipeline.id_table import build_table

        return build_table
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
