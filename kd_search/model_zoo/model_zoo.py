"""Shipped configs by name, with the functions of Detectron2's ``model_zoo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_search.config.shipped import shipped_config, shipped_configs

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def get_config_names() -> list[str]:
    """Names of the shipped configs that can be trained, which leaves out parts (``Base-*``)."""
    names = (name for name in shipped_configs() if "/Base-" not in f"/{name}")
    return sorted(name for name in names if not name.startswith(("configs/", "projects/")))


def get_config_file(config_path: str) -> str:
    """Absolute path of a shipped config.

    Args:
        config_path: a name, such as ``prw/r50_fpn.yaml``.

    Raises:
        FileNotFoundError: there is none; the message has the names that come close.
    """
    return shipped_config(config_path)


def get_config(config_path: str) -> CfgNode:
    """The config of a shipped file, on the defaults of Detectron2 and kd_search; not frozen.

    :func:`kd_search.engine.build_config` sets the number of identities and registers data as well.

    Raises:
        FileNotFoundError: there is none.
    """
    from kd_search.config import get_cfg
    from kd_search.config.files import merge_config_file

    cfg = get_cfg()
    merge_config_file(cfg, get_config_file(config_path))
    return cfg
