"""What the results of trainings and evaluations depend on, as text by name."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache

from detectron2.config import CfgNode

from kd_search.data.person_search.register import get_person_search_dicts
from kd_search.experiments import settings_of

#: Keys, or their beginnings, that a training does not depend on: places of files, which the content
#: of the data stands for, the machine, and the test.
_NOT_OF_TRAINING = (
    "DATALOADER.NUM_WORKERS",
    "DATASETS.PERSON_SEARCH_",
    "DATASETS.TEST",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.MIN_SIZE_TEST",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.PERSON_SEARCH.",
    "VIS_PERIOD",
)
_NOT_OF_EVALUATION = (
    "DATASETS.PERSON_SEARCH_",
    "DATASETS.TRAIN",
    "DISTILLATION.",
    "MODEL.TORCHVISION.WEIGHTS",
    "MODEL.WEIGHTS",
    "SEED",
    "SOLVER.",
)
#: Keys of files that the pipeline makes: their tasks are needs.
_MADE = (
    "DISTILLATION.ID_TABLE.PATH",
    "DISTILLATION.TEACHER.CONFIG_FILE",
    "DISTILLATION.TEACHER.WEIGHTS",
)
_DIGEST = "sha256 of "


def training_settings(cfg: CfgNode) -> dict[str, str]:
    """What a training depends on: keys of its config, files of weights, content of its data."""
    skipped: tuple[str, ...] = _NOT_OF_TRAINING
    if cfg.MODEL.META_ARCHITECTURE != "Distiller":
        skipped += ("DISTILLATION.",)
    return {
        **_settings(cfg, skipped, _MADE),
        "data of the training set": _digest_of(cfg.DATASETS.TRAIN),
    }


def evaluation_settings(cfg: CfgNode) -> dict[str, str]:
    """What an evaluation depends on besides the weights."""
    return {
        **_settings(cfg, _NOT_OF_EVALUATION, ()),
        "data of the test set": _digest_of(cfg.DATASETS.TEST),
    }


def _settings(cfg: CfgNode, skipped: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    settings = settings_of(cfg)
    for key in [key for key in settings if key.startswith(_DIGEST)]:
        # A file counts by its content, not by its place.
        settings[key[len(_DIGEST) :]] = settings.pop(key)
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith(tuple(skipped)) and key not in files
    }


def _digest_of(names: Sequence[str]) -> str:
    return _content_of(tuple(names))


@cache
def _content_of(names: tuple[str, ...]) -> str:
    """SHA-256 of the annotations of sets; pictures count by their names and sizes."""
    dicts, _ = get_person_search_dicts(names)
    digest = hashlib.sha256()
    for record in dicts:
        row = {**record, "file_name": os.path.basename(record["file_name"])}
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
