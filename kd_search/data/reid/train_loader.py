"""Training batches of P identities and K sets of frames each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import Dataset

from kd_search.data.io.image import ImageError
from kd_search.data.reid.mapper import CropMapper
from kd_search.data.reid.register import get_reid_samples
from kd_search.data.reid.sampler import IdentityOrder
from kd_search.data.reid.views import SOURCES, Candidate, View, choose_views
from kd_search.data.sampling.order import Draw, seeded
from kd_search.data.sampling.stream import DrawnBatches, seed_of
from kd_search.data.sampling.unreadable import MAX_ATTEMPTS, SKIPPED_KEY, skips_bad_images

#: (file name, box or None) -> (3, H, W).
Mapper = Callable[[str, Optional[Sequence[float]]], torch.Tensor]


@dataclass(frozen=True)
class ViewSettings:
    """What a training sample shows."""

    #: N frames.
    count: int = 1
    #: Where they come from, see :func:`~kd_search.data.reid.views.choose_views`.
    source: str = "tracklet"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"REID_DATA.VIEWS.NUM {self.count} is below 1")
        if self.source not in SOURCES:
            raise ValueError(
                f"REID_DATA.VIEWS.SOURCE {self.source!r} must be one of {', '.join(SOURCES)}"
            )


class ReIDTrainLoader(DrawnBatches):
    """Endless training batches whose content depends on the seed and the position alone.

    Iterating gives this rank's share of each global batch, from ``start_iter`` on: lists of P / R
    identities with K samples each, one identity after the other, so every rank has triplets of its
    own. A sample is a dict with

    - ``frames`` (N, 3, H, W) uint8, and ``file_names``, N strings;
    - ``person_id``, row of the identity; ``sample_id`` and ``role`` of the drawn sample;
    - ``camera_ids`` and ``tracklet_ids`` (N,) int64; ``camera_id`` and ``tracklet_id`` are what
      all frames share, or -1.

    Each frame is augmented by itself.

    Args:
        samples: dataset dicts, see :func:`~kd_search.data.reid.samples.load_tracklets`; those with
            a negative ``person_id`` are never drawn.
        mapper: reads and augments a frame.
        ids_per_batch: P over all ranks.
        samples_per_id: K.
        views: frames of a sample.
        seed: source of the order and of the augmentations; equal on all ranks, not negative.
        start_iter: batches to pass over.
        num_workers: worker processes; 0 loads in the training process.
        skip_bad_images: put another frame of the same identity in place of an unreadable one; such
            a sample names the lost files under ``skipped_images``.
        max_skipped_fraction: see :class:`~kd_search.data.sampling.unreadable.SkipCounter`.
        rank, world_size: default to those of the process group.

    Raises:
        ImageError: an image is unreadable and is not to be skipped, or ten in a row are. While
            iterating; the message names the file.
        TooManySkippedImagesError: while iterating.
        ValueError: fewer identities than P, or a P that the ranks cannot share evenly.
    """

    def __init__(
        self,
        samples: list[dict[str, Any]],
        *,
        mapper: Mapper,
        ids_per_batch: int,
        samples_per_id: int,
        seed: int,
        views: Optional[ViewSettings] = None,
        start_iter: int = 0,
        num_workers: int = 0,
        skip_bad_images: bool = False,
        max_skipped_fraction: float = 0.01,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
    ) -> None:
        num_ranks = comm.get_world_size() if world_size is None else world_size
        if ids_per_batch % num_ranks:
            raise ValueError(
                f"REID_DATA.IDS_PER_BATCH {ids_per_batch} is not divisible by {num_ranks} ranks"
            )
        ids = [sample["person_id"] for sample in samples]
        order = IdentityOrder(ids, ids_per_batch, samples_per_id, seed)
        views = views or ViewSettings()
        super().__init__(
            _DrawnSets(samples, mapper, order, views, skip_bad_images),
            order,
            num_images=len(samples) * views.count,
            start_iter=start_iter,
            num_workers=num_workers,
            max_skipped_fraction=max_skipped_fraction,
            rank=rank,
            world_size=world_size,
        )

    def num_images_of(self, sample: dict[str, Any]) -> int:
        return len(sample["frames"])


class _DrawnSets(Dataset):
    """Reads the views of a :class:`Draw`."""

    def __init__(
        self,
        samples: list[dict[str, Any]],
        mapper: Mapper,
        order: IdentityOrder,
        views: ViewSettings,
        skip_bad_images: bool,
    ) -> None:
        # Detectron2's list keeps the dicts serialised: worker processes then share the memory.
        self.samples = DatasetFromList(samples, copy=False)
        self.mapper = mapper
        self.order = order
        self.views = views
        self.skip_bad_images = skip_bad_images
        self._members = {int(i): members for members in order.members for i in members}
        self._cameras = np.array([s["camera_id"] for s in samples], dtype=np.int64)
        self._tracklets = np.array([s["tracklet_id"] for s in samples], dtype=np.int64)
        self._lengths = np.array([len(s["file_names"]) for s in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        members = self._members[draw.index]
        rng = np.random.Generator(np.random.PCG64([self.order.seed, draw.position]))
        candidates = [
            Candidate(int(i), int(self._cameras[i]), int(self._tracklets[i]), int(self._lengths[i]))
            for i in members
        ]
        drawn = int(np.searchsorted(members, draw.index))
        views = choose_views(candidates, drawn, self.views.count, self.views.source, rng)
        return self._read(draw, views)

    def _read(self, draw: Draw, views: list[View]) -> dict[str, Any]:
        drawn = self.samples[draw.index]
        records = {draw.index: drawn}
        frames, used, lost = [], [], []
        for place, view in enumerate(views):
            pixels, view, failed = self._frame(draw, place, view, records)
            frames.append(pixels)
            used.append(view)
            lost += failed
        cameras = torch.from_numpy(self._cameras[[view.sample for view in used]])
        tracklets = torch.from_numpy(self._tracklets[[view.sample for view in used]])
        result = {
            "frames": torch.stack(frames),
            "file_names": [records[v.sample]["file_names"][v.frame] for v in used],
            "person_id": drawn["person_id"],
            "sample_id": drawn["sample_id"],
            "role": drawn["role"],
            "camera_id": _shared(cameras),
            "tracklet_id": _shared(tracklets),
            "camera_ids": cameras,
            "tracklet_ids": tracklets,
        }
        return {**result, SKIPPED_KEY: lost} if lost else result

    def _frame(
        self, draw: Draw, place: int, view: View, records: dict[int, dict[str, Any]]
    ) -> tuple[torch.Tensor, View, list[str]]:
        """Pixels of a view, or of one that stands in for it; that view; unreadable files."""
        failed: dict[View, str] = {}
        while True:
            if view.sample not in records:
                records[view.sample] = self.samples[view.sample]
            record = records[view.sample]
            name = record["file_names"][view.frame]
            box = None if record["boxes"] is None else record["boxes"][view.frame]
            try:
                with seeded(self.order.seed, draw.position, place, len(failed)):
                    return self.mapper(name, box), view, list(failed.values())
            except ImageError:
                if not self.skip_bad_images:
                    raise
                failed[view] = name
            view = self._replacement(draw, place, failed)

    def _replacement(self, draw: Draw, place: int, failed: dict[View, str]) -> View:
        first = next(iter(failed)).sample
        for samples in ([first], self._members[draw.index].tolist()):
            left = [View(i, f) for i in samples for f in range(int(self._lengths[i]))]
            left = [view for view in left if view not in failed]
            if left and len(failed) < MAX_ATTEMPTS:
                entropy = [self.order.seed, draw.position, place, len(failed)]
                generator = np.random.Generator(np.random.PCG64(entropy))
                return left[int(generator.integers(len(left)))]
        raise ImageError(
            f"{len(failed)} images of one identity drawn one after the other cannot be read: "
            + ", ".join(failed.values())
        )


def build_reid_train_loader(
    cfg: CfgNode,
    start_iter: int = 0,
    mapper: Optional[Mapper] = None,
    samples: Optional[list[dict[str, Any]]] = None,
) -> ReIDTrainLoader:
    """Training loader of ``DATASETS.TRAIN``; see :class:`ReIDTrainLoader`.

    ``SOLVER.IMS_PER_BATCH`` counts samples, P times K; P is ``REID_DATA.IDS_PER_BATCH``. The
    sequence of global batches is a pure function of ``cfg.SEED``, these numbers and the data set. A
    negative seed is replaced by a random one that the ranks agree on; such a run cannot be resumed
    in the same order.

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
    skip_bad_images = skips_bad_images(cfg)
    if samples is None:
        samples = get_reid_samples(cfg.DATASETS.TRAIN)[0]
    return ReIDTrainLoader(
        samples,
        mapper=mapper or CropMapper(cfg, True),
        ids_per_batch=ids_per_batch,
        samples_per_id=batch_size // ids_per_batch,
        views=ViewSettings(node.VIEWS.NUM, node.VIEWS.SOURCE),
        seed=seed_of(cfg),
        start_iter=start_iter,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        skip_bad_images=skip_bad_images,
        max_skipped_fraction=cfg.INPUT.MAX_SKIPPED_FRACTION,
    )


def _shared(values: torch.Tensor) -> int:
    """The value that all have; -1 where they differ."""
    return int(values[0]) if bool((values == values[0]).all()) else -1
