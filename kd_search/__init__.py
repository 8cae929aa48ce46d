"""kd_search: knowledge distillation for end-to-end person search on Detectron2."""

from kd_search.config import add_kd_search_config

__all__ = ["add_kd_search_config"]
__version__ = "0.1.0"
