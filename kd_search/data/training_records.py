"""Images of a training set in a fixed order."""

from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from kd_search.data.catalog import is_reid
from kd_search.data.detection.loader import (
    Mapper,
    NamedErrorMapper,
    plain_training_dicts,
    train_set_kind,
)
from kd_search.data.person_search.loader import load_each_once, training_dicts
from kd_search.data.person_search.mapper import PersonSearchDatasetMapper
from kd_search.data.records import Record

#: Key of a sample: index of its image in :func:`training_records`.
POSITION_KEY = "training_position"

#: Keys that only training samples need; masks and queries can be large.
_TRAINING_KEYS = ("annotations", "queries", "sem_seg_file_name")


def training_records(cfg: CfgNode) -> list[Record]:
    """The dataset dicts that training on ``DATASETS.TRAIN`` draws from, person search or detection.

    Their order is that of the sets and of their files, the same on all ranks and in every run.

    Raises:
        FileNotFoundError, ValueError: a set is missing or broken, has other classes than the
            others, is of another kind, or holds no image with boxes.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ValueError("DATASETS.TRAIN names no data set: its boxes are needed for prototypes")
    crops = [name for name in names if is_reid(name)]
    if crops:
        raise ValueError(
            f"{crops[0]} is a re-ID set: its crops have no boxes. Train a detector on whole images"
        )
    plain = train_set_kind(names) == "detection"
    return training_dicts(cfg, plain_training_dicts(cfg) if plain else None)


def build_record_loader(
    cfg: CfgNode, records: list[Record], positions: list[int]
) -> Iterable[list[Record]]:
    """Loader of training images as in testing: resized, one a batch, split over the ranks.

    Samples hold ``image`` (3, H, W), ``height`` and ``width`` of the original image and
    ``training_position``. ``INPUT.ON_IMAGE_ERROR`` "skip" leaves unreadable images out, counted as
    in training. It can be iterated repeatedly.

    Args:
        cfg: config.
        records: of :func:`training_records`.
        positions: indices of the images to load, in this order.

    Raises:
        ValueError: there is no image to load.
    """
    chosen = []
    for position in positions:
        record = {k: v for k, v in records[position].items() if k not in _TRAINING_KEYS}
        chosen.append({**record, POSITION_KEY: position})
    return load_each_once(cfg, chosen, _test_mapper(cfg))


def _test_mapper(cfg: CfgNode) -> Mapper:
    """Mapper without annotations for the kind of the sets of ``DATASETS.TRAIN``."""
    if train_set_kind(cfg.DATASETS.TRAIN) == "person_search":
        return PersonSearchDatasetMapper(cfg, False)
    cfg = cfg.clone()
    cfg.defrost()
    # Precomputed proposals are not needed here.
    cfg.MODEL.LOAD_PROPOSALS = False
    return NamedErrorMapper(DatasetMapper(cfg, False), cfg.INPUT.MAX_IMAGE_PIXELS)
