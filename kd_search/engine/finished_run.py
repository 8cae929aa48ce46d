"""Output folders of trainings: what was trained there, with which data, and how it was rated."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import yaml
from detectron2.config import CfgNode

from kd_search import __version__
from kd_search.config.ranges import flatten
from kd_search.evaluation.search.compare_runs import INFERENCE_FOLDER
from kd_search.evaluation.search.predictions import DETECTIONS_FILE
from kd_search.utils.files import read_json, write_json
from kd_search.utils.schema import Schema, check_schema

#: Full config of a training, in its output folder.
CONFIG_FILE = "config.yaml"
#: What the config does not say about a training, in its output folder.
RECORD_FILE = "run.json"
#: Final weights of a training, in its output folder.
WEIGHTS_FILE = "model_final.pth"
_PATH_KEYS = (".CONFIG_FILE", ".WEIGHTS", ".PATH")


class _Record(Schema):
    working_directory: str
    imports: list[str] = []


@dataclass(frozen=True)
class FinishedRun:
    """Output folder of a training."""

    folder: str
    #: Name of the test set, where a folder of results was given.
    dataset: Optional[str]
    #: That its relative paths count from; ``None`` if not recorded.
    working_directory: Optional[str]
    #: Modules that it was started with as ``--import MODULE``.
    imports: tuple[str, ...]

    @property
    def config_file(self) -> str:
        return os.path.join(self.folder, CONFIG_FILE)

    @property
    def weights(self) -> str:
        """File of the final weights.

        Raises:
            FileNotFoundError: the training has not ended.
        """
        path = os.path.join(self.folder, WEIGHTS_FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{self.folder} has no {WEIGHTS_FILE}: end its training with --resume, or name a "
                "checkpoint with --weights"
            )
        return path

    def require_imports(self, imported: Sequence[str]) -> None:
        """Raise ValueError unless the modules of the training were imported."""
        missing = [name for name in self.imports if name not in imported]
        if missing:
            options = " ".join(f"--import {name}" for name in missing)
            raise ValueError(f"{self.folder} was trained with {options}: add it")


def write_run_record(folder: str, imports: Sequence[str] = ()) -> None:
    """Write ``run.json``: where a training was started, and the modules that it imported."""
    record = {
        "kd_search": __version__,
        "working_directory": os.getcwd(),
        "imports": list(imports),
    }
    write_json(os.path.join(folder, RECORD_FILE), record)


def find_run(path: str) -> Optional[FinishedRun]:
    """The training whose output folder, or part of it, a path names.

    Args:
        path: RUN, RUN/inference, RUN/inference/SET, or a file in the last.

    Raises:
        ValueError: ``run.json`` is damaged.
    """
    folder, dataset = os.path.abspath(path), None
    if os.path.isfile(folder):
        folder = os.path.dirname(folder)
    if os.path.basename(os.path.dirname(folder)) == INFERENCE_FOLDER:
        folder, dataset = os.path.split(folder)
    if os.path.basename(folder) == INFERENCE_FOLDER:
        folder = os.path.dirname(folder)
    # As the user wrote it, where that is possible: messages are shorter.
    folder = min(folder, os.path.relpath(folder), key=len)
    if not os.path.isfile(os.path.join(folder, CONFIG_FILE)):
        return None
    record_file = os.path.join(folder, RECORD_FILE)
    if not os.path.exists(record_file):  # of an earlier version
        return FinishedRun(folder, dataset, None, ())
    record = check_schema(read_json(record_file), _Record, record_file)
    return FinishedRun(folder, dataset, record.working_directory, tuple(record.imports))


def require_run(path: str) -> FinishedRun:
    """As :func:`find_run`.

    Raises:
        FileNotFoundError: it is no output folder of a training.
    """
    run = find_run(path)
    if run is None:
        exists = f"has no {CONFIG_FILE}" if os.path.exists(path) else "does not exist"
        raise FileNotFoundError(f"{path} {exists}: name the output folder of a training")
    return run


def detections_of(run: FinishedRun, dataset: Optional[str] = None) -> dict[str, str]:
    """Files of the detections that evaluations of a training left, by the name of the test set.

    Args:
        run: the training.
        dataset: of this set alone; by default of all.
    """
    parent = os.path.join(run.folder, INFERENCE_FOLDER)
    names = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    files = {name: os.path.join(parent, name, DETECTIONS_FILE) for name in names}
    return {
        name: file
        for name, file in files.items()
        if os.path.isfile(file) and dataset in (None, name)
    }


def resolve_paths(cfg: CfgNode, folder: str) -> None:
    """Make relative paths of a config absolute, in place, where they exist in a folder.

    Those of own data sets, teachers, weights and tables. Others stay as they are: they count from
    the working directory, and may be URLs.

    Args:
        cfg: not frozen.
        folder: working directory of the training.
    """

    def resolve(path: str) -> str:
        found = os.path.join(folder, path)
        return found if path and os.path.exists(found) else path

    def resolve_option(option: str) -> str:
        key, equals, value = option.partition("=")
        return f"{key}{equals}{resolve(value)}" if key == "query_info" else option

    cfg.DATASETS.PERSON_SEARCH_COCO = [
        [entry[0], *map(resolve, entry[1:])] for entry in cfg.DATASETS.PERSON_SEARCH_COCO
    ]
    cfg.DATASETS.PERSON_SEARCH_MOT = [
        [*entry[:1], *map(resolve, entry[1:2]), *map(resolve_option, entry[2:])]
        for entry in cfg.DATASETS.PERSON_SEARCH_MOT
    ]
    cfg.DATASETS.PERSON_SEARCH_RELEASES = [
        [*entry[:2], *map(resolve, entry[2:3]), *entry[3:]]
        for entry in cfg.DATASETS.PERSON_SEARCH_RELEASES
    ]
    for key, value in flatten(cfg).items():
        if key.endswith(_PATH_KEYS) and isinstance(value, str):
            *parents, name = key.split(".")
            node = cfg
            for parent in parents:
                node = node[parent]
            node[name] = resolve(value)


def read_data_sets(run: FinishedRun) -> CfgNode:
    """The sets of its own that a training had, as ``DATASETS.PERSON_SEARCH_COCO``,
    ``PERSON_SEARCH_MOT`` and ``PERSON_SEARCH_RELEASES``; other keys of its config, as of packages,
    are not needed.

    Raises:
        ValueError: the config is damaged.
    """
    try:
        with open(run.config_file, encoding="utf-8") as stream:
            datasets = yaml.safe_load(stream)["DATASETS"]
        own = {
            key: [list(entry) for entry in datasets.get(key) or ()]
            for key in ("PERSON_SEARCH_COCO", "PERSON_SEARCH_MOT", "PERSON_SEARCH_RELEASES")
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise ValueError(f"{run.config_file} is not the config of a training") from None
    cfg = CfgNode({"DATASETS": CfgNode(own)})
    if run.working_directory is not None:
        resolve_paths(cfg, run.working_directory)
    return cfg
