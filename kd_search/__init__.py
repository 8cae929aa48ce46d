"""kd_search: knowledge distillation for end-to-end person search on Detectron2."""

__all__ = ["add_kd_search_config"]
__version__ = "0.1.0"


def __getattr__(name: str):
    # Not imported above: kd_search.utils.threads must be importable before anything loads torch.
    if name == "add_kd_search_config":
        from kd_search.config import add_kd_search_config

        return add_kd_search_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
