"""Pictures, plots and pages of results.

The names are imported when they are used: pages of galleries need no matplotlib and no Detectron2.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curves import draw_loss_curves, loss_terms, read_metrics
    from .drawing import write_picture
    from .report import findings, latency_statement, write_report
    from .results_page import write_results_page
    from .search_results import (
        CHOICE,
        GOOD_CHOICE,
        choose_good_queries,
        choose_queries,
        draw_search_results,
        load_search_results,
    )

_MODULES = {
    "curves": ("draw_loss_curves", "loss_terms", "read_metrics"),
    "drawing": ("write_picture",),
    "report": ("findings", "latency_statement", "write_report"),
    "results_page": ("write_results_page",),
    "search_results": (
        "CHOICE",
        "GOOD_CHOICE",
        "choose_good_queries",
        "choose_queries",
        "draw_search_results",
        "load_search_results",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
