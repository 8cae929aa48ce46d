"""Loaders for training, testing and building ID tables."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Union

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset

from kd_search.data.person_search.mapper import PersonSearchDatasetMapper
from kd_search.data.person_search.register import get_person_search_dicts
from kd_search.data.records import Record, non_crowd
from kd_search.data.sampling.order import Draw, DrawOrder, seeded
from kd_search.data.sampling.stream import DrawnBatches, stream_options
from kd_search.data.sampling.unreadable import (
    SKIPPED_KEY,
    ReadableSamples,
    SkipCounter,
    SkipUnreadable,
    read_or_replace,
    skips_bad_images,
)

logger = logging.getLogger(__name__)

Mapper = Callable[[Record], Record]

_PLACE_KEY = "place_in_set"


class PersonSearchTrainLoader(DrawnBatches):
    """Endless training batches whose content depends on the seed and the position alone.

    The augmentation of a sample is seeded from the seed and its position, so that neither the
    number of workers nor an interruption changes a pixel. See
    :class:`~kd_search.data.sampling.stream.DrawnBatches` for iteration and errors.

    Args:
        dataset: dataset dicts.
        mapper: dataset dict -> sample.
        batch_size: images of a batch over all ranks.
        seed: source of the order and of the augmentations; equal on all ranks, not negative.
        aspect_ratio_grouping: batches of only tall or only wide images, as in Detectron2.
        skip_bad_images: replace an unreadable image by another one of the same shape group; such a
            sample has the unreadable files under ``skipped_images``.
        options: of :class:`~kd_search.data.sampling.stream.DrawnBatches`.
    """

    def __init__(
        self,
        dataset: list[Record],
        *,
        mapper: Mapper,
        batch_size: int,
        seed: int,
        aspect_ratio_grouping: bool = True,
        skip_bad_images: bool = False,
        **options: Any,
    ) -> None:
        wide = [int(d["width"] > d["height"]) if aspect_ratio_grouping else 0 for d in dataset]
        order = DrawOrder(wide, batch_size, seed)
        samples = _DrawnSamples(dataset, mapper, order, skip_bad_images)
        super().__init__(samples, order, num_images=len(dataset), **options)


class _DrawnSamples(Dataset):
    """Maps the image of a :class:`Draw`, or one that replaces it."""

    def __init__(
        self, dataset: list[Record], mapper: Mapper, order: DrawOrder, skip_bad_images: bool
    ) -> None:
        # Detectron2's list keeps the dicts serialized: worker processes then share the memory.
        self.dicts = DatasetFromList(dataset, copy=False)
        self.mapper = mapper
        self.order = order
        self.skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, draw: Draw) -> Record:
        sample, _, failed = read_or_replace(
            draw.index,
            (self.order.seed, draw.position),
            read=lambda index: self.mapper(self.dicts[index]),
            file_name=lambda index: self.dicts[index]["file_name"],
            others=lambda: self._others(draw.index),
            skip=self.skip_bad_images,
        )
        return {**sample, SKIPPED_KEY: failed} if failed else sample

    def _others(self, index: int) -> Iterator[Sequence[int]]:
        yield self.order.peers(index).tolist()
        yield range(len(self.dicts))


def build_person_search_train_loader(
    cfg: CfgNode,
    start_iter: int = 0,
    mapper: Optional[Mapper] = None,
    dataset: Optional[list[Record]] = None,
) -> PersonSearchTrainLoader:
    """Training loader of ``DATASETS.TRAIN``; see :class:`PersonSearchTrainLoader`.

    The sequence of global batches is a pure function of ``cfg.SEED``, ``SOLVER.IMS_PER_BATCH`` and
    the data set. A run with a negative seed cannot be resumed in the same order.

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
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        **stream_options(cfg, start_iter),
    )


def training_dicts(cfg: CfgNode, dataset: Optional[list[Record]] = None) -> list[Record]:
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
    """Training images with their ground truth, transformed as in testing, for building ID tables.

    One image a batch, each image once, the set split over the ranks; images without people are left
    out. Samples hold ``instances`` with ``gt_boxes`` and ``gt_person_ids``, in pixels of the
    transformed image. ``INPUT.ON_IMAGE_ERROR`` "skip" leaves unreadable images out, counted as in
    training.

    Args:
        cfg: config.
        dataset_name: registered name, or several (``DATASETS.TRAIN``), joined as in training.
    """
    dicts = _with_people(get_person_search_dicts(dataset_name)[0])
    return load_each_once(cfg, dicts, PersonSearchDatasetMapper(cfg, False, with_instances=True))


def build_person_search_views_loader(
    cfg: CfgNode, dataset_name: Union[str, Sequence[str]], *, seed: int, draw: int
) -> Union[DataLoader, ReadableSamples]:
    """Like :func:`build_person_search_table_loader`, with the images augmented as in training.

    The augmentation of an image depends on ``seed``, ``draw`` and its place in the set alone, not
    on the number of ranks and workers. Boxes without area after augmentation are absent.

    Args:
        cfg: config.
        dataset_name: registered name, or several (``DATASETS.TRAIN``), joined as in training.
        seed: of the training, not negative.
        draw: number of the augmentation, such as the iteration.
    """
    dicts = _with_people(get_person_search_dicts(dataset_name)[0])
    dicts = [{**record, _PLACE_KEY: place} for place, record in enumerate(dicts)]
    mapper = _SeededMapper(PersonSearchDatasetMapper(cfg, True), seed, draw)
    return load_each_once(cfg, dicts, mapper)


class _SeededMapper:
    """Mapper whose augmentation depends on seed, draw and place alone."""

    def __init__(self, mapper: Mapper, seed: int, draw: int) -> None:
        self.mapper, self.seed, self.draw = mapper, seed, draw

    def __call__(self, record: Record) -> Record:
        with seeded(self.seed, self.draw, record[_PLACE_KEY]):
            return self.mapper(record)


def load_each_once(
    cfg: CfgNode, dicts: list[Record], mapper: Mapper
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


def _test_loader(cfg: CfgNode, dicts: list[Record], mapper: Mapper) -> DataLoader:
    if not dicts:
        raise ValueError("the data set holds no image to load")
    return build_detection_test_loader(
        dataset=dicts,
        mapper=mapper,
        sampler=InferenceSampler(len(dicts)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _with_people(dicts: list[Record]) -> list[Record]:
    kept = [record for record in dicts if non_crowd(record)]
    if len(kept) < len(dicts):
        logger.info("Left out %d of %d images without people", len(dicts) - len(kept), len(dicts))
    return kept
