"""Loaders for training, testing and building ID tables."""

import logging
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset

from kd_search.data.io.image import ImageError
from kd_search.data.person_search.mapper import PersonSearchDatasetMapper
from kd_search.data.person_search.register import get_person_search_dicts
from kd_search.data.sampling.order import Draw, DrawOrder, seeded
from kd_search.data.sampling.stream import DrawnBatches, seed_of
from kd_search.data.sampling.unreadable import (
    MAX_ATTEMPTS,
    SKIPPED_KEY,
    ReadableSamples,
    SkipCounter,
    SkipUnreadable,
    skips_bad_images,
)

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any]]

_PLACE_KEY = "place_in_set"


class PersonSearchTrainLoader(DrawnBatches):
    """Endless training batches whose content depends on the seed and the position alone.

    Iterating gives lists of mapped samples, this rank's share of each global batch, from
    ``start_iter`` on: exactly what a loader started at 0 gives after ``start_iter`` batches. Each
    sample's augmentation is seeded from the seed and its place in the stream, so neither the
    number of workers nor an interruption changes a single pixel.

    Args:
        dataset: dataset dicts.
        mapper: dataset dict -> sample.
        batch_size: images of a batch over all ranks.
        seed: source of the order and of the augmentations; equal on all ranks, not negative.
        start_iter: batches to pass over.
        num_workers: worker processes; 0 loads in the training process.
        aspect_ratio_grouping: batches of only tall or only wide images, as Detectron2 does.
        skip_bad_images: put another image of the same shape group in place of an unreadable one;
            such a sample names the lost files under ``skipped_images``.
        max_skipped_fraction: see :class:`~kd_search.data.sampling.unreadable.SkipCounter`.
        rank, world_size: default to those of the process group.

    Raises:
        ImageError: an image is unreadable and is not to be skipped, or ten in a row are. While
            iterating; the message names the file.
        TooManySkippedImagesError: while iterating.
        ValueError: no images, or a batch size that the ranks cannot share evenly.
    """

    def __init__(
        self,
        dataset: list[dict[str, Any]],
        *,
        mapper: Mapper,
        batch_size: int,
        seed: int,
        start_iter: int = 0,
        num_workers: int = 0,
        aspect_ratio_grouping: bool = True,
        skip_bad_images: bool = False,
        max_skipped_fraction: float = 0.01,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
    ) -> None:
        wide = [int(d["width"] > d["height"]) if aspect_ratio_grouping else 0 for d in dataset]
        order = DrawOrder(wide, batch_size, seed)
        super().__init__(
            _DrawnSamples(dataset, mapper, order, seed, skip_bad_images),
            order,
            num_images=len(dataset),
            start_iter=start_iter,
            num_workers=num_workers,
            max_skipped_fraction=max_skipped_fraction,
            rank=rank,
            world_size=world_size,
        )


class _DrawnSamples(Dataset):
    """Maps the image of a :class:`Draw`, or of the draws that stand in for it."""

    def __init__(
        self,
        dataset: list[dict[str, Any]],
        mapper: Mapper,
        order: DrawOrder,
        seed: int,
        skip_bad_images: bool,
    ) -> None:
        # Detectron2's list keeps the dicts serialised: worker processes then share the memory.
        self.dicts = DatasetFromList(dataset, copy=False)
        self.mapper = mapper
        self.order = order
        self.seed = seed
        self.skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        failed: dict[int, str] = {}
        index = draw.index
        while True:
            record = self.dicts[index]
            try:
                with seeded(self.seed, draw.position, len(failed)):
                    sample = self.mapper(record)
            except ImageError:
                if not self.skip_bad_images:
                    raise
                failed[index] = record["file_name"]
            else:
                return {**sample, SKIPPED_KEY: list(failed.values())} if failed else sample
            index = self._replacement(draw, failed)

    def _replacement(self, draw: Draw, failed: dict[int, str]) -> int:
        for candidates in (self.order.peers(draw.index), np.arange(len(self.dicts))):
            candidates = np.setdiff1d(candidates, list(failed))
            if len(candidates) and len(failed) < MAX_ATTEMPTS:
                entropy = [self.seed, draw.position, len(failed)]
                generator = np.random.Generator(np.random.PCG64(entropy))
                return int(candidates[generator.integers(len(candidates))])
        raise ImageError(
            f"{len(failed)} images drawn one after the other cannot be read: "
            + ", ".join(failed.values())
        )


def build_person_search_train_loader(
    cfg: CfgNode,
    start_iter: int = 0,
    mapper: Optional[Mapper] = None,
    dataset: Optional[list[dict[str, Any]]] = None,
) -> PersonSearchTrainLoader:
    """Training loader of ``DATASETS.TRAIN``; see :class:`PersonSearchTrainLoader`.

    The sequence of global batches is a pure function of ``cfg.SEED``, ``SOLVER.IMS_PER_BATCH`` and
    the data set. A negative seed is replaced by a random one that the ranks agree on; such a run
    cannot be resumed in the same order.

    Args:
        cfg: config with the keys of kd_search.
        start_iter: first iteration.
        mapper: replaces :class:`PersonSearchDatasetMapper`.
        dataset: replaces the dataset dicts of ``DATASETS.TRAIN``.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN!r} is not supported; "
            "use 'TrainingSampler'"
        )
    return PersonSearchTrainLoader(
        training_dicts(cfg, dataset),
        mapper=mapper or PersonSearchDatasetMapper(cfg, True),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed_of(cfg),
        start_iter=start_iter,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        skip_bad_images=skips_bad_images(cfg),
        max_skipped_fraction=cfg.INPUT.MAX_SKIPPED_FRACTION,
    )


def training_dicts(
    cfg: CfgNode, dataset: Optional[list[dict[str, Any]]] = None
) -> list[dict[str, Any]]:
    """The dataset dicts that a training on ``DATASETS.TRAIN`` draws from, in their order.

    Args:
        cfg: config; ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` leaves out images without people.
        dataset: replaces those of the person search sets in ``DATASETS.TRAIN``.

    Raises:
        ValueError: none is left.
    """
    if dataset is None:
        dataset = get_person_search_dicts(cfg.DATASETS.TRAIN)[0]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        dataset = _with_people(dataset)
    if not dataset:
        raise ValueError(f"no image with people in DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}")
    return dataset


def build_person_search_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Optional[Mapper] = None
) -> DataLoader:
    """Test loader of one registered set: one image a batch, the set split over the ranks.

    An unreadable image always raises: leaving it out would change the metric.

    Args:
        cfg: config; ``TEST.PERSON_SEARCH.USE_GT_BOXES`` adds ``gallery_boxes`` to the samples.
        dataset_name: registered name.
        mapper: replaces :class:`PersonSearchDatasetMapper`.
    """
    if mapper is None:
        use_gt_boxes = cfg.TEST.PERSON_SEARCH.USE_GT_BOXES
        mapper = PersonSearchDatasetMapper(cfg, False, with_gt_boxes=use_gt_boxes)
    return _test_loader(cfg, get_person_search_dicts(dataset_name)[0], mapper)


def build_person_search_table_loader(
    cfg: CfgNode, dataset_name: Union[str, Sequence[str]]
) -> Union[DataLoader, ReadableSamples]:
    """Training images with their ground truth as the test sees them, for building ID tables.

    One image a batch, resized as in testing, not augmented, each image once, the set split over
    the ranks; images without people are left out. Samples hold ``instances`` with ``gt_boxes`` and
    ``gt_person_ids``, in pixels of the transformed image. ``INPUT.ON_IMAGE_ERROR`` "skip" leaves
    unreadable images out, counted as in training.

    Args:
        cfg: config.
        dataset_name: registered name, or several (``DATASETS.TRAIN``), joined as in training.
    """
    dicts = _with_people(get_person_search_dicts(dataset_name)[0])
    return load_each_once(cfg, dicts, PersonSearchDatasetMapper(cfg, False, with_instances=True))


def build_person_search_views_loader(
    cfg: CfgNode, dataset_name: Union[str, Sequence[str]], *, seed: int, draw: int
) -> Union[DataLoader, ReadableSamples]:
    """As :func:`build_person_search_table_loader`, with the images augmented as in training.

    What an image looks like comes from ``seed``, ``draw`` and its place in the set alone, whatever
    the number of ranks and workers. Boxes that the augmentation leaves nothing of are absent.

    Args:
        cfg: config.
        dataset_name: registered name, or several (``DATASETS.TRAIN``), joined as in training.
        seed: of the training, not negative.
        draw: each number shows other views of the images, such as the iteration.
    """
    dicts = _with_people(get_person_search_dicts(dataset_name)[0])
    dicts = [{**record, _PLACE_KEY: place} for place, record in enumerate(dicts)]
    mapper = _SeededMapper(PersonSearchDatasetMapper(cfg, True), seed, draw)
    return load_each_once(cfg, dicts, mapper)


class _SeededMapper:
    """Draws the augmentation of an image from seed, draw and place."""

    def __init__(self, mapper: Mapper, seed: int, draw: int) -> None:
        self.mapper, self.seed, self.draw = mapper, seed, draw

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        with seeded(self.seed, self.draw, record[_PLACE_KEY]):
            return self.mapper(record)


def load_each_once(
    cfg: CfgNode, dicts: list[dict[str, Any]], mapper: Mapper
) -> Union[DataLoader, ReadableSamples]:
    """Loader of training images in their order: one image a batch, split over the ranks.

    Args:
        cfg: config; ``INPUT.ON_IMAGE_ERROR`` "skip" leaves unreadable images out, counted as in
            training.
        dicts: dataset dicts.
        mapper: dataset dict -> sample.

    Raises:
        ValueError: there is no image.
    """
    if not skips_bad_images(cfg):
        return _test_loader(cfg, dicts, mapper)
    loader = _test_loader(cfg, dicts, SkipUnreadable(mapper))
    return ReadableSamples(loader, SkipCounter(cfg.INPUT.MAX_SKIPPED_FRACTION, len(loader)))


def _test_loader(cfg: CfgNode, dicts: list[dict[str, Any]], mapper: Mapper) -> DataLoader:
    if not dicts:
        raise ValueError("the data set holds no image to load")
    return build_detection_test_loader(
        dataset=dicts,
        mapper=mapper,
        sampler=InferenceSampler(len(dicts)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _with_people(dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [d for d in dicts if any(not a.get("iscrowd", 0) for a in d["annotations"])]
    if len(kept) < len(dicts):
        logger.info("Left out %d of %d images without people", len(dicts) - len(kept), len(dicts))
    return kept
