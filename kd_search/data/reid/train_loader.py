"""Training batches of P identities with K samples each, of N frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import Dataset

from kd_search.data.records import Record
from kd_search.data.reid.mapper import CropMapper
from kd_search.data.reid.register import get_reid_samples
from kd_search.data.reid.views import Candidate, FrameRef, check_source, choose_views
from kd_search.data.sampling.order import Draw, IdentityOrder, make_generator
from kd_search.data.sampling.stream import DrawnBatches, stream_options
from kd_search.data.sampling.unreadable import SKIPPED_KEY, read_or_replace

#: (file name, box or None) -> (3, H, W).
Mapper = Callable[[str, Optional[Sequence[float]]], torch.Tensor]


@dataclass(frozen=True)
class ViewSettings:
    """Frames of a training sample."""

    #: N.
    count: int = 1
    #: Their source, see :func:`~kd_search.data.reid.views.choose_views`.
    source: str = "tracklet"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"REID_DATA.VIEWS.NUM {self.count} is below 1")
        check_source(self.source)


class ReIDTrainLoader(DrawnBatches):
    """Endless training batches whose content depends on the seed and the position alone.

    The share of a rank is P / R identities with K samples each, one identity after the other, so
    that every rank has its own triplets. See
    :class:`~kd_search.data.sampling.stream.DrawnBatches` for iteration and errors. A sample is a
    dict with

    - ``frames`` (N, 3, H, W) uint8, each augmented by itself, and ``file_names``, N strings;
    - ``person_id``, row of the identity; ``sample_id`` and ``role`` of the drawn sample;
    - ``camera_ids`` and ``tracklet_ids`` (N,) int64; ``camera_id`` and ``tracklet_id`` are those of
      all frames, or -1 where they differ.

    Args:
        samples: dataset dicts, see :func:`~kd_search.data.reid.samples.load_tracklets`; those with
            a negative ``person_id`` are never drawn.
        mapper: reads and augments a frame.
        ids_per_batch: P over all ranks.
        samples_per_id: K.
        seed: source of the order and of the augmentations; equal on all ranks, not negative.
        views: frames of a sample.
        skip_bad_images: replace an unreadable frame by another one of the same identity; such a
            sample has the unreadable files under ``skipped_images``.
        options: of :class:`~kd_search.data.sampling.stream.DrawnBatches`.
    """

    def __init__(
        self,
        samples: list[Record],
        *,
        mapper: Mapper,
        ids_per_batch: int,
        samples_per_id: int,
        seed: int,
        views: Optional[ViewSettings] = None,
        skip_bad_images: bool = False,
        **options: Any,
    ) -> None:
        num_ranks = options.get("world_size") or comm.get_world_size()
        if ids_per_batch % num_ranks:
            raise ValueError(
                f"REID_DATA.IDS_PER_BATCH {ids_per_batch} is not divisible by {num_ranks} ranks"
            )
        ids = [sample["person_id"] for sample in samples]
        order = IdentityOrder(ids, ids_per_batch, samples_per_id, seed)
        views = views or ViewSettings()
        drawn = _DrawnSets(samples, mapper, order, views, skip_bad_images)
        super().__init__(drawn, order, num_images=len(samples) * views.count, **options)

    def num_images_of(self, sample: Record) -> int:
        return len(sample["frames"])


class _DrawnSets(Dataset):
    """Reads the frames of a :class:`Draw`."""

    def __init__(
        self,
        samples: list[Record],
        mapper: Mapper,
        order: IdentityOrder,
        views: ViewSettings,
        skip_bad_images: bool,
    ) -> None:
        # Detectron2's list keeps the dicts serialized: worker processes then share the memory.
        self.samples = DatasetFromList(samples, copy=False)
        self.mapper = mapper
        self.order = order
        self.views = views
        self.skip_bad_images = skip_bad_images
        self._members = {int(i): members for members in order.members for i in members}
        self._cameras = np.array([s["camera_id"] for s in samples], dtype=np.int64)
        self._tracklets = np.array([s["tracklet_id"] for s in samples], dtype=np.int64)
        self._lengths = [len(s["file_names"]) for s in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Record:
        members = self._members[draw.index]
        candidates = [
            Candidate(int(i), int(self._cameras[i]), int(self._tracklets[i]), self._lengths[i])
            for i in members
        ]
        drawn = int(np.searchsorted(members, draw.index))
        rng = make_generator(self.order.seed, draw.position)
        views = choose_views(candidates, drawn, self.views.count, self.views.source, rng)
        return self._read(draw, views)

    def _read(self, draw: Draw, views: list[FrameRef]) -> Record:
        records: dict[int, Record] = {}

        def record_of(view: FrameRef) -> Record:
            if view.sample not in records:
                records[view.sample] = self.samples[view.sample]
            return records[view.sample]

        def file_name(view: FrameRef) -> str:
            return record_of(view)["file_names"][view.frame]

        def read(view: FrameRef) -> torch.Tensor:
            boxes = record_of(view)["boxes"]
            return self.mapper(file_name(view), None if boxes is None else boxes[view.frame])

        frames, used, lost = [], [], []
        for place, view in enumerate(views):
            pixels, found, failed = read_or_replace(
                view,
                (self.order.seed, draw.position, place),
                read=read,
                file_name=file_name,
                others=partial(self._others, view),
                skip=self.skip_bad_images,
            )
            frames.append(pixels)
            used.append(found)
            lost += failed
        drawn = self.samples[draw.index]
        cameras, tracklets = (
            torch.from_numpy(ids[[view.sample for view in used]])
            for ids in (self._cameras, self._tracklets)
        )
        result = {
            "frames": torch.stack(frames),
            "file_names": [file_name(view) for view in used],
            "person_id": drawn["person_id"],
            "sample_id": drawn["sample_id"],
            "role": drawn["role"],
            "camera_id": _common(cameras),
            "tracklet_id": _common(tracklets),
            "camera_ids": cameras,
            "tracklet_ids": tracklets,
        }
        return {**result, SKIPPED_KEY: lost} if lost else result

    def _others(self, view: FrameRef) -> Iterator[list[FrameRef]]:
        """Frames of the same sample, then of the same identity."""
        for samples in ([view.sample], self._members[view.sample].tolist()):
            yield [FrameRef(i, f) for i in samples for f in range(self._lengths[i])]


def build_reid_train_loader(
    cfg: CfgNode,
    start_iter: int = 0,
    mapper: Optional[Mapper] = None,
    samples: Optional[list[Record]] = None,
) -> ReIDTrainLoader:
    """Training loader of ``DATASETS.TRAIN``; see :class:`ReIDTrainLoader`.

    ``SOLVER.IMS_PER_BATCH`` counts samples, P times K; P is ``REID_DATA.IDS_PER_BATCH``. The
    sequence of global batches is a pure function of ``cfg.SEED``, these numbers and the data set. A
    run with a negative seed cannot be resumed in the same order.

    Args:
        cfg: config with the keys of kd_search.
        start_iter: first iteration.
        mapper: replaces :class:`CropMapper`.
        samples: replaces those of ``DATASETS.TRAIN``.

    Raises:
        FileNotFoundError, ValueError: a set is missing or broken, or the numbers do not fit.
    """
    node = cfg.REID_DATA
    ids_per_batch, batch_size = node.IDS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if ids_per_batch < 1 or batch_size < 1 or batch_size % ids_per_batch:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {batch_size} is not a multiple of REID_DATA.IDS_PER_BATCH "
            f"{ids_per_batch}: a batch has K samples of each of P identities"
        )
    options = stream_options(cfg, start_iter)
    return ReIDTrainLoader(
        get_reid_samples(cfg.DATASETS.TRAIN)[0] if samples is None else samples,
        mapper=mapper or CropMapper(cfg, True),
        ids_per_batch=ids_per_batch,
        samples_per_id=batch_size // ids_per_batch,
        views=ViewSettings(node.VIEWS.NUM, node.VIEWS.SOURCE),
        **options,
    )


def _common(values: torch.Tensor) -> int:
    """The value that all have; -1 where they differ."""
    return int(values[0]) if bool((values == values[0]).all()) else -1
