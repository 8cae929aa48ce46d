"""Evaluation of a trained network of a project, and the versions of packages."""

import contextlib
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode

import kd_search
from kd_search.checkpoint import load_trained
from kd_search.data import build_person_search_test_loader
from kd_search.engine import PersonSearchTrainer

#: Images that the latency is measured on.
TIMED_IMAGES = 30


def measure(cfg: CfgNode, weights: Path) -> dict[str, Any]:
    """Evaluate a network on its test set.

    Args:
        cfg: of the network, for evaluation.
        weights: of the network.

    Returns:
        ``mAP``, ``top1``, ``top5``, ``top10`` (those of ``TEST.PERSON_SEARCH.TOP_K``), ``det_AP``,
        ``det_recall`` in percent, ``params``, and ``latency_ms`` (median) with
        ``latency_quartiles_ms`` of one image.
    """
    model = load_network(cfg, weights)
    results = PersonSearchTrainer.test(cfg, model)
    search, detection = results["person_search"], results["detection"]
    return {
        **{key: search[key] for key in ("mAP", "top1", "top5", "top10") if key in search},
        "det_AP": detection["AP"],
        "det_recall": detection["recall"],
        "params": sum(p.numel() for p in model.parameters()),
        **_latency(model, cfg),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {
        "kd_search": kd_search.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "numpy": np.__version__,
    }
    # It generates pictures; own ones do not need it.
    with contextlib.suppress(ImportError):
        import cv2

        found["opencv"] = cv2.__version__
    return found


def load_network(cfg: CfgNode, weights: Path) -> torch.nn.Module:
    """A trained network, for evaluation."""
    model = PersonSearchTrainer.build_model(cfg).eval()
    load_trained(model, str(weights))
    return model


def _latency(model: torch.nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Median and quartiles of the time to search one test image, after a few to warm up."""
    loader = build_person_search_test_loader(cfg, cfg.DATASETS.TEST[0])
    times = []
    with torch.no_grad():
        for batch, _ in zip(loader, range(TIMED_IMAGES)):
            inputs = [{k: v for k, v in x.items() if k != "query_boxes"} for x in batch]
            start = time.perf_counter()
            model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    times = times[min(3, max(0, len(times) - 2)) :]
    if len(times) < 2:
        times *= 2
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return {"latency_ms": median, "latency_quartiles_ms": [first, third]}
