"""Trains and evaluates one network in one folder."""

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import detectron2
import torch

from kd_search.checkpoint import load_trained
from kd_search.data.reid import is_reid
from kd_search.engine import PersonSearchTrainer
from kd_search.experiments.metrics import pick_metrics
from kd_search.experiments.run_folder import (
    RESULT_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    build_run_config,
    metric_lines,
    read_result,
    settings_of,
)
from kd_search.utils.files import write_json


def train_and_evaluate(config_file: str, opts: Sequence, output: Path, *, on_train: bool) -> dict:
    """Train from the last checkpoint on, evaluate, and write the result.

    Args:
        config_file: of the network.
        opts: KEY VALUE overrides.
        output: folder of the run, made if absent.
        on_train: evaluate on the training set too; re-ID sets have no queries there and are left
            out.

    Returns:
        what :data:`RESULT_FILE` holds: ``metrics``, ``train_metrics``, ``params``,
        ``iterations``, ``seconds_per_iteration``, ``seed``, ``versions``.

    Raises:
        SettingsError: see :func:`read_result`.
    """
    cfg = build_run_config(config_file, opts, output)
    settings = settings_of(cfg)
    done = read_result(output, settings)
    if done is not None:
        return done
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / SETTINGS_FILE, settings, sealed=True)
    (output / "config.yaml").write_text(cfg.dump())

    train_cfg = cfg.clone()
    train_cfg.defrost()
    train_cfg.DATASETS.TEST = ()  # evaluated below, once
    trainer = PersonSearchTrainer(train_cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()

    model, cfg = load_trained_run(config_file, opts, output)
    on_train = on_train and not is_reid(cfg.DATASETS.TRAIN[0])
    result = {
        "metrics": evaluate_on(cfg, model, cfg.DATASETS.TEST[:1]),
        "train_metrics": evaluate_on(cfg, model, cfg.DATASETS.TRAIN[:1]) if on_train else {},
        "params": sum(p.numel() for p in model.parameters()),
        "iterations": cfg.SOLVER.MAX_ITER,
        "seconds_per_iteration": _median_seconds(output),
        "seed": cfg.SEED,
        "versions": _versions(),
    }
    write_json(output / RESULT_FILE, result, sealed=True)
    return result


def load_trained_run(config_file: str, opts: Sequence, output: Path):
    """The network of a finished run, in evaluation mode, and its config.

    Args:
        config_file, opts, output: as :func:`train_and_evaluate`.

    Raises:
        FileNotFoundError: it has not been trained.
    """
    cfg = build_run_config(config_file, opts, output, eval_only=True)
    model = PersonSearchTrainer.build_model(cfg).eval()
    load_trained(model, str(output / WEIGHTS_FILE))
    return model, cfg


def evaluate_on(cfg, model: torch.nn.Module, names: Sequence[str]) -> dict[str, float]:
    """The numbers of :data:`~kd_search.experiments.metrics.METRICS` on a data set.

    Args:
        cfg: of the network.
        model: in evaluation mode.
        names: one data set, in the place of ``DATASETS.TEST``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = tuple(names)
    return pick_metrics(PersonSearchTrainer.test(cfg, model))


def _median_seconds(output: Path) -> Optional[float]:
    times = [line["time"] for line in metric_lines(output) if "time" in line]
    return statistics.median(times) if times else None


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }
