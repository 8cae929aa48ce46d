"""What a re-ID network said of a test set, put together from all ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from kd_search.evaluation.reid.embeddings import ReIDEmbeddings

_QUERIES, _GALLERIES = ("query", "both"), ("gallery", "both")
_NUMBERS = ("sample_id", "person_id", "camera_id", "frame_id")
_ROLES = ("query_image", "query_video", "gallery_image", "gallery_video")


@dataclass
class Entry:
    """An embedding, and what it is of."""

    sample_id: int
    person_id: int
    camera_id: int
    frame_id: int
    role: str
    #: "image", "video" or both.
    views: tuple[str, ...]
    #: Files it was made of; None where the loader does not say.
    file_names: Optional[tuple[str, ...]]
    embedding: np.ndarray

    @property
    def key(self) -> tuple:
        return self.sample_id, self.views, self.file_names


def entries_of(sample: dict, output: dict) -> list[Entry]:
    """Entries of an element of the test loader; none of a sample with the role "train".

    Where the element has no ``views``, it is a video, and an image too if it has one frame only;
    ``frame_embedding`` of the output, if there is one, is then that of its first frame.

    Raises:
        ValueError: naming the sample whose output is missing.
    """
    if sample["role"] == "train":
        return []
    if "embedding" not in output:
        raise ValueError(
            f"sample {sample['sample_id']}: the output of the network has no embedding"
        )
    views, names = sample.get("views"), sample.get("file_names")
    parts = [(views, names, output["embedding"])]
    if views is None:
        single = len(sample["frames"]) == 1
        parts = [(("image", "video") if single else ("video",), names, output["embedding"])]
        if "frame_embedding" in output and not single:
            parts.append((("image",), names and names[:1], output["frame_embedding"]))
    return [
        Entry(
            sample_id=int(sample["sample_id"]),
            person_id=int(sample["person_id"]),
            camera_id=int(sample["camera_id"]),
            frame_id=int(sample.get("frame_id", -1)),
            role=sample["role"],
            views=tuple(part_views),
            file_names=None if part_names is None else tuple(part_names),
            embedding=_to_array(embedding),
        )
        for part_views, part_names, embedding in parts
    ]


def put_together(
    entries: Iterable[Entry], samples: list[dict], *, append_queries: bool = False
) -> ReIDEmbeddings:
    """Entries of all ranks as arrays, sorted by sample; what several ranks saw counts once.

    The first image of a query is searched for; of a sample that is in the gallery, every image is
    searched, but a ``still`` that stands for the query alone.

    Args:
        samples: dataset dicts of the set.
        append_queries: queries are in the gallery, too.

    Raises:
        ValueError: a sample is missing, or unknown to the set.
    """
    first: dict[tuple, Entry] = {}
    for entry in entries:
        first.setdefault(entry.key, entry)
    unique = sorted(first.values(), key=lambda entry: entry.sample_id)
    _check_complete({entry.sample_id for entry in unique}, samples)
    stills = {s["sample_id"]: (s["still"],) for s in samples if "still" in s}
    roles = {name: np.zeros(len(unique), dtype=bool) for name in _ROLES}
    asked: set[int] = set()
    for row, entry in enumerate(unique):
        is_gallery = entry.role in _GALLERIES or (append_queries and entry.role in _QUERIES)
        if "image" in entry.views:
            if entry.role in _QUERIES and entry.sample_id not in asked:
                asked.add(entry.sample_id)
                roles["query_image"][row] = True
            is_still = entry.file_names == stills.get(entry.sample_id, ())
            roles["gallery_image"][row] = is_gallery and not (is_still and entry.role == "both")
        if "video" in entry.views:
            roles["query_video"][row] = entry.role in _QUERIES
            roles["gallery_video"][row] = is_gallery
    return ReIDEmbeddings(
        np.stack([e.embedding for e in unique]) if unique else np.zeros((0, 0), np.float32),
        *(np.array([getattr(e, name) for e in unique], dtype=np.int64) for name in _NUMBERS),
        **roles,
    )


def _check_complete(have: set[int], samples: list[dict]) -> None:
    want = {s["sample_id"] for s in samples if s["role"] != "train"}
    missing, strange = sorted(want - have), sorted(have - want)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(want)} samples have no embedding (the first is sample "
            f"{missing[0]}); was the whole test set run?"
        )
    if strange:
        raise ValueError(
            f"{len(strange)} samples with an embedding are not in the data set (the first is "
            f"sample {strange[0]}); is it another test set?"
        )


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    # A copy: the tensor may be a view that would keep the whole batch alive.
    return tensor.detach().to("cpu", torch.float32).numpy().copy()
