"""Loaders of plain detection sets: Detectron2's data, in an order that can be resumed."""

from collections.abc import Sequence
from typing import Callable, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch.utils.data import DataLoader

from kd_search.data.catalog import is_person_search, require_registered
from kd_search.data.detection.register import clear_errors, known_classes
from kd_search.data.io.image import invalid_name
from kd_search.data.person_search.loader import (
    PersonSearchTrainLoader,
    build_person_search_train_loader,
)
from kd_search.data.records import Record
from kd_search.utils.pictures import ImageError, refuse_large

Mapper = Callable[[Record], Record]


class NamedErrorMapper:
    """Mapper of Detectron2 with a limit of pixels and errors that name the image.

    Args:
        mapper: dataset dict -> sample, such as Detectron2's ``DatasetMapper``.
        max_image_pixels: larger images are refused from their header, before decoding.

    Raises:
        ImageError: the image is missing, truncated, no image, or too large.
        SizeMismatchError: its size differs from that in its dict (Detectron2's, a ValueError).
    """

    def __init__(self, mapper: Mapper, max_image_pixels: int) -> None:
        self.mapper = mapper
        self.max_image_pixels = max_image_pixels

    def __call__(self, record: Record) -> Record:
        path = record["file_name"]
        try:
            self._check_header(path)
            return self.mapper(record)
        except ImageError:
            raise
        except FileNotFoundError:
            raise ImageError(f"{path}: no such image file") from None
        # Errors of Pillow's decoders; SyntaxError is that of bad PNG chunks.
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"{path}: cannot be decoded ({error})") from None

    def _check_header(self, path: str) -> None:
        try:
            stream = PathManager.open(path, "rb")
        except ValueError as error:
            raise invalid_name(path, error) from None
        with stream, Image.open(stream) as image:
            refuse_large(path, image.size, self.max_image_pixels)


def train_set_kind(names: Sequence[str]) -> str:
    """Kind of the sets of ``DATASETS.TRAIN``: "person_search" or "detection".

    Raises:
        ValueError: some have identities and some do not, or one is not registered.
    """
    for name in names:
        require_registered(name)
    with_ids = [name for name in names if is_person_search(name)]
    without = [name for name in names if not is_person_search(name)]
    if with_ids and without:
        raise ValueError(
            f"DATASETS.TRAIN mixes person search sets ({', '.join(with_ids)}) with sets that have "
            f"no identities ({', '.join(without)}): train on one kind"
        )
    return "detection" if without else "person_search"


def build_seeded_detection_train_loader(
    cfg: CfgNode, start_iter: int = 0, mapper: Optional[Mapper] = None
) -> PersonSearchTrainLoader:
    """Training loader of plain detection sets; see :class:`PersonSearchTrainLoader`.

    The dataset dicts are those of Detectron2's ``get_detection_dataset_dicts`` and the mapper is
    its ``DatasetMapper``. Order and augmentations depend on the seed and the position alone.

    Args:
        cfg: config with the keys of kd_search; ``DATASETS.TRAIN`` holds plain detection sets.
        start_iter: first iteration.
        mapper: replaces Detectron2's ``DatasetMapper``.

    Raises:
        FileNotFoundError, ValueError: a set is missing or broken, has other classes than the
            others, or holds no image with boxes.
    """
    dataset = plain_training_dicts(cfg)
    mapper = NamedErrorMapper(mapper or DatasetMapper(cfg, True), cfg.INPUT.MAX_IMAGE_PIXELS)
    return build_person_search_train_loader(cfg, start_iter, mapper, dataset)


def plain_training_dicts(cfg: CfgNode) -> list[Record]:
    """Dataset dicts of the plain detection sets in ``DATASETS.TRAIN``, joined in their order.

    Raises:
        FileNotFoundError, ValueError: see :func:`build_seeded_detection_train_loader`.
    """
    names = list(cfg.DATASETS.TRAIN)
    for name in names[1:]:
        if known_classes(name) != known_classes(names[0]):
            raise ValueError(
                f"DATASETS.TRAIN joins {names[0]} and {name}, which have different classes"
            )
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    with clear_errors(", ".join(names)):
        dataset = get_detection_dataset_dicts(
            names,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    if not all("annotations" in record for record in dataset):
        raise ValueError(f"images of DATASETS.TRAIN {tuple(names)} have no annotations")
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING and any("width" not in d for d in dataset):
        raise ValueError(
            f"images of DATASETS.TRAIN {tuple(names)} have no width and height: set "
            "DATALOADER.ASPECT_RATIO_GROUPING False"
        )
    return dataset


def build_plain_detection_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Detectron2's test loader, with errors that name set and image.

    Raises:
        FileNotFoundError, ValueError: the set is missing, broken or not registered.
    """
    require_registered(dataset_name)
    mapper = NamedErrorMapper(DatasetMapper(cfg, False), cfg.INPUT.MAX_IMAGE_PIXELS)
    with clear_errors(dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)
