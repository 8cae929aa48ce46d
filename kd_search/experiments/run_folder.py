"""The folder of one run: its config, how far it has come, what came out."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from pydantic import BaseModel, RootModel

from kd_search.engine import build_config
from kd_search.utils.files import read_json
from kd_search.utils.schema import (
    Schema,
    check_schema,
)

RESULT_FILE = "result.json"
SETTINGS_FILE = "settings.json"
METRICS_FILE = "metrics.json"
WEIGHTS_FILE = "model_final.pth"


class SettingsError(ValueError):
    """A folder that holds another run than the one that is asked for."""


def build_run_config(config_file: str, opts: Sequence, output: Path, *, eval_only: bool = False):
    """The frozen config of a run in the folder ``output``; see
    :func:`kd_search.engine.build_config`."""
    return build_config(config_file, [*opts, "OUTPUT_DIR", str(output)], eval_only=eval_only)


def settings_of(cfg) -> dict[str, str]:
    """What a result depends on: every config key but the folder, and the content of the files that
    it starts from and learns from."""
    settings = dict(_flat(cfg))
    del settings["OUTPUT_DIR"]
    files = {"start": cfg.MODEL.WEIGHTS}
    if cfg.MODEL.META_ARCHITECTURE == "Distiller":
        node = cfg.DISTILLATION
        files["teacher"] = node.TEACHER.WEIGHTS
        files["re-ID teacher"] = node.REID_TEACHER.WEIGHTS
        files["id_table"] = node.ID_TABLE.PATH
    for key, path in files.items():
        if os.path.isfile(path):
            settings[f"sha256 of the {key}"] = _sha256(path)
    return settings


def _sha256(path: str) -> str:
    status = os.stat(path)
    return _sha256_of_state(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _sha256_of_state(path: str, modified: int, size: int) -> str:
    from kd_search.distillation import file_sha256

    return file_sha256(path)


def _flat(node, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def read_result(output: Path, settings: dict[str, str]) -> Optional[dict[str, Any]]:
    """The result of a finished run; ``None`` where there is none yet.

    Keys that only one of two versions of the code has are not compared.

    Raises:
        SettingsError: the folder belongs to a run with other settings.
        ValueError: a file of the folder is damaged; one line that names it.
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


def iterations_done(output: Path) -> int:
    """How far a run has come: iterations that its metrics.json tells of."""
    return max((line["iteration"] + 1 for line in metric_lines(output)), default=0)


def metric_lines(output: Path) -> list[dict[str, float]]:
    """Whole lines of metrics.json; the last one may still be being written."""
    path = output / METRICS_FILE
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if "iteration" in line]


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
