"""The folder of one training run: config, settings, checkpoints and result."""

import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from pydantic import BaseModel, RootModel

from kd_search.checkpoint import load_trained
from kd_search.data.reid import is_reid
from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.engine.finished_run import CONFIG_FILE, WEIGHTS_FILE, write_run_record
from kd_search.experiments.run_facts import (
    METRICS,
    TEST_MS,
    config_digest,
    environment_of,
    per_query_of,
)
from kd_search.utils.files import file_sha256, read_json, write_json
from kd_search.utils.schema import Schema, check_schema

RESULT_FILE = "result.json"
SETTINGS_FILE = "settings.json"
METRICS_FILE = "metrics.json"


class SettingsError(ValueError):
    """A folder holds a run with other settings than the requested one."""


def build_run_config(
    config_file: str, opts: Sequence[Any], output: Path, *, eval_only: bool = False
) -> CfgNode:
    """The frozen config of a run in the folder ``output``; see
    :func:`kd_search.engine.build_config`."""
    return build_config(config_file, [*opts, "OUTPUT_DIR", str(output)], eval_only=eval_only)


def settings_of(cfg: CfgNode) -> dict[str, str]:
    """Everything that a result depends on: every config key except ``OUTPUT_DIR``, and the SHA-256
    of the files that ``MODEL.WEIGHTS``, ``MODEL.TORCHVISION.WEIGHTS``, of a search in two steps
    ``MODEL.TWO_STEP.REID.WEIGHTS``, and, in a distilled training, keys of ``DISTILLATION`` that end
    in ``.WEIGHTS`` or ``.PATH`` name."""
    settings = dict(_flatten(cfg))
    del settings["OUTPUT_DIR"]
    distilled = cfg.MODEL.META_ARCHITECTURE == "Distiller"
    inputs = ["MODEL.WEIGHTS", "MODEL.TORCHVISION.WEIGHTS"]
    if cfg.MODEL.META_ARCHITECTURE == "TwoStepSearch":
        inputs.append("MODEL.TWO_STEP.REID.WEIGHTS")
    for key, path in list(settings.items()):
        is_input = key in inputs or (
            distilled and key.startswith("DISTILLATION.") and key.endswith((".WEIGHTS", ".PATH"))
        )
        if is_input and os.path.isfile(path):
            status = os.stat(path)
            digest = _sha256(os.path.abspath(path), status.st_mtime_ns, status.st_size)
            settings[f"sha256 of {key}"] = digest
    return settings


@lru_cache(maxsize=64)
def _sha256(path: str, modified: int, size: int) -> str:
    return file_sha256(path)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def read_result(output: Path, settings: dict[str, str]) -> Optional[dict[str, Any]]:
    """The result of a finished run; ``None`` where there is none yet.

    Keys that exist in only one of two versions of the code are not compared.

    Raises:
        SettingsError: the folder belongs to a run with other settings.
        ValueError: a file of the folder is corrupt.
    """
    known = _read(output / SETTINGS_FILE, _Settings)
    if known is None:
        return None
    changed = [key for key in settings if known.get(key, settings[key]) != settings[key]]
    if changed:
        key = changed[0]
        more = f", and {len(changed) - 1} more differ" if len(changed) > 1 else ""
        raise SettingsError(
            f"{output} holds a run with other settings ({key} {known[key]!r}, not "
            f"{settings[key]!r}{more}): remove it, or name another folder with --output"
        )
    return _read(output / RESULT_FILE, _Result)


class _Settings(RootModel):
    root: dict[str, str]


class _Result(Schema):
    metrics: dict[str, Optional[float]]


def _read(path: Path, schema: type[BaseModel]) -> Optional[dict[str, Any]]:
    if not path.is_file():
        return None
    content = read_json(path, sealed=True)
    check_schema(content, schema, path)
    return content


def iterations_done(output: Path) -> int:
    """Iterations that the ``metrics.json`` of a run covers."""
    return max((int(line["iteration"]) + 1 for line in _metric_lines(output)), default=0)


def _metric_lines(output: Path) -> list[dict[str, float]]:
    path = output / METRICS_FILE
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(ValueError):  # the last line may be incomplete
            lines.append(json.loads(line))
    return [line for line in lines if "iteration" in line]


def train_and_evaluate(
    config_file: str,
    opts: Sequence[Any],
    output: Path,
    *,
    on_train: bool,
    choices: Optional[Path] = None,
    imports: Sequence[str] = (),
) -> dict[str, Any]:
    """Train from the last checkpoint on, evaluate, and write :data:`RESULT_FILE`.

    Args:
        config_file: of the network.
        opts: KEY VALUE overrides.
        output: folder of the run, created if absent.
        on_train: evaluate on the training set too, except for re-ID sets, which have no queries
            there.
        choices: results file of a study, which must hold how its settings were chosen.
        imports: modules that this process has imported for the run, for its record.

    Returns:
        the content of :data:`RESULT_FILE`: ``metrics``, ``train_metrics``; ``per_query``, see
        :func:`.run_facts.per_query_of`; ``params``, ``iterations``, ``seconds_per_iteration``
        (median); ``test_ms``, processor milliseconds of the evaluation for each picture of the
        test set, with reading, queries and ranking; ``seed``; ``started`` (UTC) and ``seconds`` of
        this process, and from which iteration it ``resumed``; ``config_sha256``, and
        :func:`.run_facts.environment_of`.

    Raises:
        SettingsError: see :func:`read_result`.
        ValueError: no choices are recorded; nothing is trained or tested.
    """
    require_choices(choices)
    cfg = build_run_config(config_file, opts, output)
    settings = settings_of(cfg)
    done = read_result(output, settings)
    if done is not None:
        return done
    begin, started = time.monotonic(), now()
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / SETTINGS_FILE, settings, sealed=True)
    (output / CONFIG_FILE).write_text(cfg.dump())
    write_run_record(str(output), imports)

    train_cfg = cfg.clone()
    train_cfg.defrost()
    train_cfg.DATASETS.TEST = ()  # evaluated below, once
    trainer = PersonSearchTrainer(train_cfg)
    trainer.resume_or_load(resume=True)
    resumed = trainer.start_iter
    trainer.train()

    model, cfg = load_trained_run(config_file, opts, output)
    on_train = on_train and not is_reid(cfg.DATASETS.TRAIN[0])
    times = [line["time"] for line in _metric_lines(output) if "time" in line]
    require_choices(choices)
    before = time.process_time()
    metrics = evaluate_on(cfg, model, cfg.DATASETS.TEST[:1])
    test_seconds = time.process_time() - before
    result = {
        "metrics": metrics,
        "per_query": per_query_of(output / "inference" / cfg.DATASETS.TEST[0]),
        "train_metrics": evaluate_on(cfg, model, cfg.DATASETS.TRAIN[:1]) if on_train else {},
        "params": sum(p.numel() for p in model.parameters()),
        "iterations": cfg.SOLVER.MAX_ITER,
        "seconds_per_iteration": statistics.median(times) if times else None,
        TEST_MS: round(1000 * test_seconds / len(DatasetCatalog.get(cfg.DATASETS.TEST[0])), 2),
        "seed": cfg.SEED,
        "started": started,
        "seconds": round(time.monotonic() - begin, 1),
        "resumed": resumed,
        "config_sha256": config_digest(settings),
        **environment_of(cfg),
    }
    write_json(output / RESULT_FILE, result, sealed=True)
    return result


def require_choices(path: Optional[Path]) -> None:
    """Refuse to test a run before the choices of its study are in its results file.

    Raises:
        ValueError: there is no such file, or it holds no choices; not where ``path`` is ``None``.
    """
    if path is None:
        return
    recorded = path.is_file() and (read_json(path, sealed=True).get("protocol") or {})
    if not recorded or not recorded.get("recorded"):
        raise ValueError(
            f"{path}: no choices of settings are recorded; the test set is evaluated after that "
            "alone: start the study, not the run"
        )


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def load_trained_run(
    config_file: str, opts: Sequence[Any], output: Path
) -> tuple[torch.nn.Module, CfgNode]:
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


def evaluate_on(cfg: CfgNode, model: torch.nn.Module, names: Sequence[str]) -> dict[str, float]:
    """:data:`METRICS` of a network in evaluation mode on one data set, which replaces
    ``DATASETS.TEST``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = tuple(names)
    return pick_metrics(PersonSearchTrainer.test(cfg, model))


def pick_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The numbers of :data:`METRICS` that an evaluation returned.

    COCO's AP of a network without detections is NaN; here it is 0. With several re-ID settings
    "reid" is left out, since it repeats the first of them.
    """
    several = any(task.startswith("reid_") for task in results)
    picked = {}
    for name, (task, key) in METRICS.items():
        if key in results.get(task, {}) and not (several and task == "reid"):
            value = float(results[task][key])
            picked[name] = 0.0 if math.isnan(value) else value
    return picked
