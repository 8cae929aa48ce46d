"""Facts about a run that its result records: versions, hardware, code, data, queries."""

import base64
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

import kd_search
from kd_search.evaluation.reid.evaluator import RESULTS_FILE as REID_FILE
from kd_search.evaluation.search.compare_runs import load_results
from kd_search.evaluation.search.evaluate import RESULTS_FILE as SEARCH_FILE
from kd_search.utils.files import read_json

#: Column of a table to (task, key) of the results of an evaluation. In the order of tables; all in
#: percent.
METRICS = {
    "AP50": ("bbox", "AP50"),
    "AP": ("bbox", "AP"),
    "AP75": ("bbox", "AP75"),
    "mAP": ("person_search", "mAP"),
    "top1": ("person_search", "top1"),
    "all_mAP": ("whole_gallery", "mAP"),
    "all_top1": ("whole_gallery", "top1"),
    "det_AP": ("detection", "AP"),
    "det_recall": ("detection", "recall"),
    "reid_mAP": ("reid", "mAP"),
    "reid_top1": ("reid", "top1"),
    **{
        f"{short}_{key}": (f"reid_{short}", key)
        for short in ("i2v", "v2v", "i2i", "v2i")
        for key in ("mAP", "top1")
    },
}
#: Column of processor milliseconds for a test picture, which only layouts that name it show.
TEST_MS = "test_ms"

# Largest value of 16 bits: a query without a match, which counts in no mean.
_NO_MATCH = 65535
_FULL = 65534
# What identifies a query, in search and in re-ID.
_OF_QUERY = ("query_id", "image_id", "sample_id", "person_id", "camera_id", "bbox", "num_gt")


def shown_metrics(run: Mapping[str, Any], key: str = "metrics") -> dict[str, float]:
    """Numbers of a run for a table: its ``metrics`` or ``train_metrics``, without those that are
    ``None``; of the test set :data:`TEST_MS` too, where it was measured."""
    found = {name: value for name, value in run[key].items() if value is not None}
    if key == "metrics" and found and run.get(TEST_MS) is not None:
        found[TEST_MS] = run[TEST_MS]
    return found


def environment_of(cfg: CfgNode) -> dict[str, Any]:
    """Versions, hardware, code and data of a run in this process.

    Returns:
        :func:`machine_of`, and ``data``, by data set, see :func:`data_digest`.
    """
    names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST[:1]])
    return {**machine_of(cfg), "data": {name: data_digest(name) for name in names}}


def machine_of(cfg: CfgNode) -> dict[str, Any]:
    """``versions`` of Python and packages; ``hardware``; ``code``, see :func:`code_version`."""
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "detectron2": detectron2.__version__,
            "kd_search": kd_search.__version__,
        },
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if cuda else None,
        },
        "code": code_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # other systems than Linux
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


#: Pathspecs of all files but those that studies write.
_CODE = (":/", ":(top,exclude)projects/*/results/*.json")


def code_version() -> Optional[dict[str, Any]]:
    """``commit`` of the checkout that kd_search is imported from, and whether tracked files other
    than results files were ``modified``; ``None`` where it is in no checkout, or there is no git.
    """
    folder = Path(kd_search.__file__).resolve().parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    try:
        # A package that is installed below an unrelated checkout is none of its files.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {
            "commit": git("rev-parse", "HEAD"),
            # A study that goes on has written its own results file.
            "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def data_digest(name: str) -> dict[str, Any]:
    """Identify the content of a registered data set.

    Returns:
        ``images`` or samples; ``people``, identities, if the set has any; ``sha256`` of its
        dataset dicts, with the name and size in bytes of a file instead of its path. The pixels are
        not read.
    """
    digest, people = hashlib.sha256(), set()
    records = DatasetCatalog.get(name)
    for record in records:
        digest.update(json.dumps(_plain(record), sort_keys=True).encode())
        people |= {int(entry.get("person_id", -1)) for entry in record.get("annotations", ())}
        people.add(int(record.get("person_id", -1)))
    people.discard(-1)
    found = {"people": len(people)} if people else {}
    return {"images": len(records), **found, "sha256": digest.hexdigest()}


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, key) for v in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    if isinstance(value, (str, os.PathLike)) and key.startswith("file_name"):
        size = os.path.getsize(value) if os.path.isfile(value) else None
        return [os.path.basename(value), size]
    # BoxMode is an IntEnum.
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def config_digest(settings: Mapping[str, str]) -> str:
    """SHA-256 of the settings of a run (:func:`.run_folder.settings_of`), without paths of files
    whose content is among them, and without folders of caches."""
    kept = {
        key: value
        for key, value in settings.items()
        if f"sha256 of {key}" not in settings and not key.endswith("CACHE_DIR")
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def per_query_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Average precisions of the queries that an evaluation wrote to a folder.

    Returns:
        by the name of the mean in :data:`METRICS` ("mAP", "reid_mAP", "i2v_mAP", ...):
        what :func:`pack_queries` returns. Empty for a detector.
    """
    if (folder / SEARCH_FILE).is_file():
        return {"mAP": pack_queries(load_results(folder)["queries"])}
    if not (folder / REID_FILE).is_file():
        return {}
    by_setting = read_json(folder / REID_FILE)["queries"]
    names = {
        setting: f"{setting[0]}2{setting.partition('-to-')[2][0]}_mAP" for setting in by_setting
    }
    if len(by_setting) == 1:
        names = dict.fromkeys(by_setting, "reid_mAP")
    return {names[setting]: pack_queries(rows) for setting, rows in by_setting.items()}


def pack_queries(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average precisions of queries in little space.

    Args:
        rows: a dict for each query, with ``AP`` in percent, or ``None`` without a match.

    Returns:
        ``ap``: base64 of little-endian uint16, 65534 for 100 % and 65535 for a query without a
        match, so that the rounding error is below 0.001 points; ``queries``: SHA-256 of what
        identifies the queries, in their order.
    """
    ap = [_NO_MATCH if row["AP"] is None else round(row["AP"] / 100 * _FULL) for row in rows]
    identity = [[row.get(key) for key in _OF_QUERY] for row in rows]
    return {
        "queries": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        "ap": base64.b64encode(np.array(ap, "<u2").tobytes()).decode(),
    }


def unpack_queries(packed: Mapping[str, Any]) -> np.ndarray:
    """(Q,) float64 average precisions in percent from :func:`pack_queries`; NaN without a match.

    Raises:
        ValueError: it is not base64 of 16-bit numbers.
    """
    data = base64.b64decode(packed["ap"], validate=True)
    if len(data) % 2:
        raise ValueError(f"{len(data)} bytes are no list of 16-bit numbers")
    values = np.frombuffer(data, "<u2").astype(np.float64)
    return np.where(values == _NO_MATCH, np.nan, values / _FULL * 100)
