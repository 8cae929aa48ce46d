"""Trainer of query-guided networks: pairs in training, every query with every picture in tests."""

import os
from collections import OrderedDict
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm

from kd_search.engine import PersonSearchTrainer
from kd_search.engine.task import is_search_task
from qeeps.backbone import is_query_guided
from qeeps.pairs import build_pair_train_loader
from qeeps.search import query_guided_search


class QueryGuidedTrainer(PersonSearchTrainer):
    """PersonSearchTrainer that trains a ``QueryGuidedRCNN`` on pairs, and searches with queries.

    Other networks, such as the plain one that it starts from, are trained as usual.
    """

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> Any:
        if is_query_guided(cfg):
            return build_pair_train_loader(cfg, start_iter)
        return super().build_train_loader(cfg, start_iter)

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, evaluators: Optional[Any] = None) -> Any:
        """As ``DefaultTrainer.test``; a query-guided network by :func:`query_guided_search`."""
        names = [name for name in cfg.DATASETS.TEST if is_search_task(cfg, name)]
        if (
            evaluators is not None
            or not is_query_guided(cfg)
            or len(names) < len(cfg.DATASETS.TEST)
        ):
            return super().test(cfg, model, evaluators)
        results: OrderedDict[str, Any] = OrderedDict()
        for name in names:
            folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
            results[name] = query_guided_search(cfg, model, name, folder)
            if comm.is_main_process():
                print_csv_format(results[name])
        return results[names[0]] if len(names) == 1 else results
