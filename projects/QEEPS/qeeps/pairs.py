"""Training pairs: a gallery picture, and a query in another picture of one of its people."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset

from kd_search.config import ConfigError
from kd_search.data.person_search.loader import training_dicts
from kd_search.data.person_search.mapper import PersonSearchDatasetMapper
from kd_search.data.records import Record, non_crowd
from kd_search.data.sampling.order import Draw, DrawOrder, make_generator
from kd_search.data.sampling.stream import DrawnBatches, stream_options
from kd_search.data.sampling.unreadable import SKIPPED_KEY, read_or_replace

Mapper = Callable[[Record], Record]
MODES = ("all", "sampled")
# Name of the random stream that queries are chosen with.
_QUERIES = 21


class Pair(NamedTuple):
    """A gallery picture and a query, by their places in the data set."""

    gallery: int
    query: int
    person_id: int


class PairSource:
    """The pairs of a training set.

    Args:
        dicts: dataset dicts, with ``person_id`` and ``camera_id``.
        mode: "all": N (N - 1) ordered pairs of the N pictures of each identity, in the order of
            identities and pictures. "sampled": every picture that shares a person with another one,
            as gallery picture; :meth:`pair` draws the query.
        other_camera: of "sampled": from pictures of another camera, where there are any.
        absent_fraction: share of pairs whose query is replaced by one of a person who is not
            labelled in the gallery picture.

    Attributes:
        galleries: (P,) gallery picture of each pair of an epoch.

    Raises:
        ConfigError: a setting is out of range.
        ValueError: no person is in two pictures.
    """

    def __init__(
        self,
        dicts: Sequence[Record],
        *,
        mode: str = "all",
        other_camera: bool = True,
        absent_fraction: float = 0.0,
    ):
        if mode not in MODES:
            raise ConfigError(f"DATALOADER.PAIRS.MODE {mode!r} is none of {MODES}")
        if not 0 <= absent_fraction < 1:
            raise ConfigError(
                f"DATALOADER.PAIRS.ABSENT_FRACTION {absent_fraction} must be in [0, 1)"
            )
        self.mode, self.other_camera, self.absent_fraction = mode, other_camera, absent_fraction
        pictures: dict[int, list[int]] = defaultdict(list)
        #: Identities of each picture, ascending.
        self._people: list[list[int]] = []
        for place, record in enumerate(dicts):
            ids = sorted({a["person_id"] for a in non_crowd(record) if a["person_id"] >= 0})
            self._people.append(ids)
            for person in ids:
                pictures[person].append(place)
        self._pictures = {i: np.array(pictures[i]) for i in sorted(pictures)}
        self._cameras = np.array(
            [-1 if d.get("camera_id") is None else d["camera_id"] for d in dicts]
        )
        if mode == "all":
            self._pairs = np.array(
                [
                    (gallery, query, person)
                    for person, places in self._pictures.items()
                    for query in places
                    for gallery in places
                    if gallery != query
                ],
                dtype=np.int64,
            ).reshape(-1, 3)
            self.galleries = self._pairs[:, 0]
        else:
            self.galleries = np.array(
                [
                    place
                    for place, ids in enumerate(self._people)
                    if any(len(self._pictures[i]) > 1 for i in ids)
                ],
                dtype=np.int64,
            )
        if not len(self.galleries):
            raise ValueError("no person of the training set is labelled in two pictures: no pairs")

    def __len__(self) -> int:
        return len(self.galleries)

    def pair(self, number: int, *entropy: int) -> Pair:
        """The pair of this number; what is drawn depends on it and on ``entropy`` alone."""
        rng = make_generator(_QUERIES, *entropy)
        gallery = int(self.galleries[number])
        if self.absent_fraction and rng.random() < self.absent_fraction:
            absent = [i for i in self._pictures if i not in self._people[gallery]]
            if absent:
                person = absent[int(rng.integers(len(absent)))]
                return Pair(gallery, int(rng.choice(self._pictures[person])), person)
        if self.mode == "all":
            return Pair(*map(int, self._pairs[number]))
        people = [i for i in self._people[gallery] if len(self._pictures[i]) > 1]
        person = people[int(rng.integers(len(people)))]
        others = self._pictures[person][self._pictures[person] != gallery]
        if self.other_camera:
            elsewhere = others[self._cameras[others] != self._cameras[gallery]]
            others = elsewhere if len(elsewhere) else others
        return Pair(gallery, int(rng.choice(others)), person)


class PairTrainLoader(DrawnBatches):
    """Endless training batches of pairs whose content depends on the seed and the position alone.

    A sample is that of the mapper for the gallery picture, with ``query_image`` ((3, H, W), as
    ``image``, transformed by itself), ``query_boxes`` ((1, 4) float32, XYXY in pixels of it),
    ``query_person_id`` and ``query_file_name``. See
    :class:`~kd_search.data.sampling.stream.DrawnBatches` for iteration and errors.

    Args:
        dicts: dataset dicts.
        mapper: dataset dict -> sample with ``instances``.
        source: the pairs of ``dicts``.
        batch_size: pairs of a batch over all ranks.
        seed: source of order, pairs and augmentations; equal on all ranks, not negative.
        aspect_ratio_grouping: batches of only tall or only wide gallery pictures.
        skip_bad_images: replace a pair with an unreadable picture by another pair.
        options: of :class:`~kd_search.data.sampling.stream.DrawnBatches`.
    """

    def __init__(
        self,
        dicts: list[Record],
        *,
        mapper: Mapper,
        source: PairSource,
        batch_size: int,
        seed: int,
        aspect_ratio_grouping: bool = True,
        skip_bad_images: bool = False,
        **options: Any,
    ) -> None:
        wide = np.array([int(d["width"] > d["height"]) for d in dicts])[source.galleries]
        groups = wide if aspect_ratio_grouping else np.zeros_like(wide)
        order = DrawOrder(groups.tolist(), batch_size, seed)
        samples = _DrawnPairs(dicts, mapper, source, order, skip_bad_images)
        super().__init__(samples, order, num_images=2 * len(source), **options)

    def num_images_of(self, sample: Record) -> int:
        return 2


class _DrawnPairs(Dataset):
    """Maps the two pictures of a :class:`Draw`, or of one that replaces it."""

    def __init__(
        self,
        dicts: list[Record],
        mapper: Mapper,
        source: PairSource,
        order: DrawOrder,
        skip_bad_images: bool,
    ):
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper, self.source, self.order = mapper, source, order
        self.skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Record:
        sample, _, failed = read_or_replace(
            draw.index,
            (self.order.seed, draw.position),
            read=lambda number: self._read(number, draw.position),
            file_name=lambda number: self._file_name(number, draw.position),
            others=lambda: self._others(draw.index),
            skip=self.skip_bad_images,
        )
        return {**sample, SKIPPED_KEY: failed} if failed else sample

    def _others(self, index: int) -> Iterator[Sequence[int]]:
        yield self.order.peers(index).tolist()
        yield range(len(self.source))

    def _pair(self, number: int, position: int) -> Pair:
        return self.source.pair(number, self.order.seed, position)

    def _file_name(self, number: int, position: int) -> str:
        pair = self._pair(number, position)
        return " or ".join(self.dicts[i]["file_name"] for i in (pair.gallery, pair.query))

    def _read(self, number: int, position: int) -> Record:
        pair = self._pair(number, position)
        sample, query = self.mapper(self.dicts[pair.gallery]), self.mapper(self.dicts[pair.query])
        people = query["instances"]
        # A person who is annotated twice in a picture: the first box.
        box = people.gt_boxes.tensor[people.gt_person_ids == pair.person_id][:1]
        return {
            **sample,
            "query_image": query["image"],
            "query_boxes": box,
            "query_person_id": pair.person_id,
            "query_file_name": query["file_name"],
        }


def build_pair_train_loader(
    cfg: CfgNode,
    start_iter: int = 0,
    mapper: Optional[Mapper] = None,
    dataset: Optional[list[Record]] = None,
) -> PairTrainLoader:
    """Training loader of ``DATASETS.TRAIN`` by ``DATALOADER.PAIRS``; see :class:`PairTrainLoader`.

    ``SOLVER.IMS_PER_BATCH`` counts pairs. Arguments as ``build_person_search_train_loader``.

    Raises:
        ConfigError: ``INPUT.CROP.ENABLED``, which could cut the query away.
    """
    if cfg.INPUT.CROP.ENABLED:
        raise ConfigError(
            "INPUT.CROP.ENABLED may cut the query out of its picture: set it to False for "
            "query-guided training"
        )
    dicts, node = training_dicts(cfg, dataset), cfg.DATALOADER.PAIRS
    return PairTrainLoader(
        dicts,
        mapper=mapper or PersonSearchDatasetMapper(cfg, True),
        source=PairSource(
            dicts,
            mode=node.MODE,
            other_camera=node.OTHER_CAMERA,
            absent_fraction=node.ABSENT_FRACTION,
        ),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        **stream_options(cfg, start_iter),
    )
