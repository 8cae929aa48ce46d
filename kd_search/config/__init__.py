"""Every configuration key of kd_search, with its meaning and where its default comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_search.config.data import add_data
from kd_search.config.distillation import add_distillation
from kd_search.config.model import add_model
from kd_search.config.training import add_training

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_kd_search_config(cfg: CfgNode) -> None:
    """Add the keys of kd_search to a Detectron2 config, in place.

    Call it on the result of ``detectron2.config.get_cfg()`` before ``merge_from_file``. Keys of
    Detectron2 keep their meaning; everything new lives under the nodes of the files of this folder.
    """
    add_data(cfg)
    add_model(cfg)
    add_distillation(cfg)
    add_training(cfg)
