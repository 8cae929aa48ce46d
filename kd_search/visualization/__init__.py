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

__all__ = [
    "CHOICE",
    "GOOD_CHOICE",
    "choose_good_queries",
    "choose_queries",
    "draw_loss_curves",
    "draw_search_results",
    "findings",
    "latency_statement",
    "load_search_results",
    "loss_terms",
    "read_metrics",
    "write_picture",
    "write_report",
    "write_results_page",
]
