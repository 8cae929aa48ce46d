"""Test loader of queries and galleries, as single images and as tracklets."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from kd_search.data.reid.mapper import CropMapper
from kd_search.data.reid.register import get_reid_samples
from kd_search.data.reid.train_loader import Mapper
from kd_search.data.reid.views import chunk_frames

#: Kind of the queries and of the gallery.
SETTINGS = ("image-to-image", "image-to-video", "video-to-image", "video-to-video")


class Entry(NamedTuple):
    """Input of one forward pass."""

    #: Index of the sample.
    sample: int
    #: Indices of its frames; empty for the still of the sample.
    frames: tuple[int, ...]
    #: "image", "video" or both: its uses in the settings.
    views: tuple[str, ...]


def list_entries(
    samples: Sequence[dict[str, Any]],
    settings: Sequence[str],
    *,
    num_frames: int = 8,
    gallery_images: str = "first",
) -> list[Entry]:
    """Different inputs that some settings need of each sample.

    As a video a sample is the first frame of each of ``num_frames`` chunks
    (:func:`~kd_search.data.reid.views.chunk_frames`). As an image, a query is its still, or else
    its first frame; a gallery consists of the first frame of each sample ("first": MARS and Duke in
    the code of VKD, ECCV 2020) or of all frames ("all": VeRi-776 there).

    Args:
        samples: dataset dicts of a test set; those with the role "train" are ignored.
        settings: some of :data:`SETTINGS`.
        num_frames: frames of a video; 0 takes all.
        gallery_images: "first" or "all".

    Raises:
        ValueError: unknown settings, or a set without queries or gallery.
    """
    for setting in settings:
        if setting not in SETTINGS:
            raise ValueError(
                f"REID_DATA.TEST.SETTINGS: {setting!r} is none of {', '.join(SETTINGS)}"
            )
    if not settings:
        raise ValueError("REID_DATA.TEST.SETTINGS is empty: nothing would be evaluated")
    of_query = {setting.split("-to-")[0] for setting in settings}
    of_gallery = {setting.split("-to-")[1] for setting in settings}
    entries: list[Entry] = []
    for index, sample in enumerate(samples):
        is_query = sample["role"] in ("query", "both")
        is_gallery = sample["role"] in ("gallery", "both")
        length = len(sample["file_names"])
        wanted: dict[tuple[int, ...], list[str]] = {}
        if is_query and "image" in of_query:
            wanted.setdefault(() if "still" in sample else (0,), []).append("image")
        if is_gallery and "image" in of_gallery:
            for frame in range(length if gallery_images == "all" else 1):
                views = wanted.setdefault((frame,), [])
                if "image" not in views:
                    views.append("image")
        if (is_query and "video" in of_query) or (is_gallery and "video" in of_gallery):
            frames = chunk_frames(length, num_frames) if num_frames else list(range(length))
            # A single image is not repeated: the mean of equal embeddings is the embedding.
            wanted.setdefault((0,) if length == 1 else tuple(frames), []).append("video")
        entries += [Entry(index, places, tuple(views)) for places, views in wanted.items()]
    roles = {sample["role"] for sample in samples}
    for role in ("query", "gallery"):
        if not roles & {role, "both"}:
            raise ValueError(f"the set has no {role}: it cannot be a test set")
    return entries


class _Entries(Dataset):
    def __init__(
        self, samples: list[dict[str, Any]], entries: Sequence[Entry], mapper: Mapper
    ) -> None:
        self.samples = DatasetFromList(samples, copy=False)
        self.entries = list(entries)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> dict[str, Any]:
        entry = self.entries[number]
        sample = self.samples[entry.sample]
        names = [sample["file_names"][frame] for frame in entry.frames] or [sample["still"]]
        boxes: list[Optional[Any]] = [None] * len(names)
        if sample["boxes"] is not None and entry.frames:
            boxes = [sample["boxes"][frame] for frame in entry.frames]
        kept = ("sample_id", "person_id", "camera_id", "tracklet_id", "role", "frame_id")
        # Short tracklets repeat frames.
        places = list(zip(names, (None if box is None else tuple(box) for box in boxes)))
        pixels = {place: self.mapper(*place) for place in dict.fromkeys(places)}
        return {
            "frames": torch.stack([pixels[place] for place in places]),
            "file_names": names,
            "views": entry.views,
            **{key: sample[key] for key in kept if key in sample},
        }


class _EqualLengths(Sampler):
    """Batches of this rank's entries that have the same number of frames."""

    def __init__(self, entries: Sequence[Entry], batch_size: int) -> None:
        lengths = [max(len(entry.frames), 1) for entry in entries]
        order = sorted(range(len(entries)), key=lambda i: lengths[i])
        own = [order[i] for i in InferenceSampler(len(entries))]
        self._batches = [
            part
            for _, alike in itertools.groupby(own, key=lambda i: lengths[i])
            for part in BatchSampler(list(alike), batch_size, drop_last=False)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


def build_reid_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Optional[Mapper] = None
) -> DataLoader:
    """Test loader of one registered re-ID set, split over the ranks.

    Batches are lists of dicts with ``frames`` (T, 3, H, W) uint8 (T is equal in a batch),
    ``file_names``, ``person_id`` (-1: a distractor), ``camera_id`` and ``tracklet_id`` (-1
    unknown), ``sample_id``, ``role``, ``frame_id`` where it is known, and ``views``: "image",
    "video" or both, the uses of the dict in ``REID_DATA.TEST.SETTINGS``. See :func:`list_entries`.
    An unreadable image always raises: leaving it out would change the metric.

    Args:
        cfg: config with the keys of kd_search.
        dataset_name: registered name.
        mapper: replaces :class:`CropMapper`.

    Raises:
        FileNotFoundError, ValueError: the set is missing or broken, or no test set.
        ImageError: while iterating; the message names the file.
    """
    node = cfg.REID_DATA.TEST
    samples, _ = get_reid_samples(dataset_name)
    gallery_images = MetadataCatalog.get(dataset_name).get("gallery_images", "first")
    try:
        entries = list_entries(
            samples, node.SETTINGS, num_frames=node.FRAMES, gallery_images=gallery_images
        )
    except ValueError as error:
        raise ValueError(f"{dataset_name}: {error}") from None
    if node.BATCH_SIZE < 1:
        raise ValueError(f"REID_DATA.TEST.BATCH_SIZE {node.BATCH_SIZE} is below 1")
    return DataLoader(
        _Entries(samples, entries, mapper or CropMapper(cfg, False)),
        batch_sampler=_EqualLengths(entries, node.BATCH_SIZE),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )
