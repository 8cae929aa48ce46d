"""Embeddings of a re-ID test set, and the file that keeps them.

The file is an ``.npz`` archive (:mod:`..archives`) with the fields of :class:`ReIDEmbeddings`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

import numpy as np

from kd_search.evaluation.archives import load_archive, save_archive
from kd_search.evaluation.flat_arrays import AnyPath, check_floats, check_integers
from kd_search.evaluation.reid.metric import ReIDSet

#: Kind of query and of gallery entry: a single image or the whole tracklet (VKD, ECCV 2020).
SETTINGS = ("image-to-image", "image-to-video", "video-to-image", "video-to-video")

FORMAT = "kd_search.reid_embeddings"
VERSION = 1
_NUMBERS = ("sample_id", "person_id", "camera_id", "frame_id")
_ROLES = ("query_image", "query_video", "gallery_image", "gallery_video")
_QUERIES, _GALLERIES = ("query", "both"), ("gallery", "both")


@dataclass
class ReIDEmbeddings:
    """N entries: inputs of the network, each an image or the frames of a tracklet.

    Raises ValueError, naming the array, where a shape or type is wrong.
    """

    embeddings: np.ndarray  # (N, D) float32
    sample_ids: np.ndarray  # (N,) int64, of the data set; several images of a tracklet share one
    person_ids: np.ndarray  # (N,) int64, row of the identity; -1 for a distractor
    camera_ids: np.ndarray  # (N,) int64; -1 unknown
    frame_ids: np.ndarray  # (N,) int64, of the first frame in its video; -1 unknown
    query_image: np.ndarray  # (N,) bool, queries where a query is an image
    query_video: np.ndarray  # (N,) bool, queries where a query is a tracklet
    gallery_image: np.ndarray  # (N,) bool, the gallery where it holds images
    gallery_video: np.ndarray  # (N,) bool, the gallery where it holds tracklets

    def __post_init__(self) -> None:
        self.embeddings = check_floats("embeddings", self.embeddings, (None, None))
        count = (len(self.embeddings),)
        for name in (f"{number}s" for number in _NUMBERS):
            setattr(self, name, check_integers(name, getattr(self, name), count))
        for name in _ROLES:
            array = np.asarray(getattr(self, name))
            if array.dtype != bool or array.shape != count:
                raise ValueError(
                    f"{name} is {array.dtype} of shape {array.shape}; expected bool of {count}"
                )

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows_of(self, setting: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the queries and of the gallery of a setting.

        Raises:
            ValueError: the setting is none of :data:`SETTINGS`, or has no embeddings here.
        """
        if setting not in SETTINGS:
            raise ValueError(f"setting {setting!r} is none of {', '.join(SETTINGS)}")
        query_view, _, gallery_view = setting.partition("-to-")
        rows = []
        for role in (f"query_{query_view}", f"gallery_{gallery_view}"):
            rows.append(np.flatnonzero(getattr(self, role)))
            if not len(rows[-1]):
                what = role.replace("_", " as ").replace("query", "queries")
                raise ValueError(
                    f"{setting}: no embeddings of the {what}; was the network run in this setting?"
                )
        return rows[0], rows[1]

    def select(self, rows: np.ndarray) -> ReIDSet:
        """Return entries as input of the metric; the entries of a sample are one item."""
        return ReIDSet(
            self.embeddings[rows],
            self.person_ids[rows],
            self.camera_ids[rows],
            self.frame_ids[rows],
            self.sample_ids[rows],
        )


@dataclass
class Entry:
    """An embedding and its origin."""

    sample_id: int
    person_id: int
    camera_id: int
    frame_id: int
    role: str
    views: tuple[str, ...]  # "image", "video" or both
    file_names: Optional[tuple[str, ...]]  # None where the loader does not provide them
    embedding: np.ndarray


def merge_entries(
    entries: Iterable[Entry], samples: Sequence[Mapping[str, Any]], *, append_queries: bool = False
) -> ReIDEmbeddings:
    """Merge the entries of all ranks, sorted by sample; repeated entries count once.

    The first image of a query is the query. Every image of a gallery sample is in the gallery, but
    a ``still`` that only represents the query.

    Args:
        samples: dataset dicts of the set.
        append_queries: add the queries to the gallery.

    Raises:
        ValueError: a sample is missing, or not in the set.
    """
    first: dict[tuple[Any, ...], Entry] = {}
    for entry in entries:
        first.setdefault((entry.sample_id, entry.views, entry.file_names), entry)
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


def save_reid_embeddings(path: AnyPath, embeddings: ReIDEmbeddings, **metadata: Any) -> None:
    """Write embeddings; the file is replaced atomically.

    Args:
        metadata: JSON values to keep beside the arrays, such as ``dataset``.
    """
    arrays = {field.name: getattr(embeddings, field.name) for field in fields(embeddings)}
    save_archive(path, arrays, format=FORMAT, version=VERSION, **metadata)


def load_reid_embeddings(path: AnyPath) -> tuple[ReIDEmbeddings, dict[str, Any]]:
    """Read a file of :func:`save_reid_embeddings`. Nothing in it is executed.

    Returns:
        The embeddings and the metadata.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, of another format, or an entry is missing or does not fit; the
            message names the file.
    """
    names = [field.name for field in fields(ReIDEmbeddings)]
    arrays, metadata = load_archive(path, "embeddings", (FORMAT, (VERSION,)), names)
    try:
        return ReIDEmbeddings(**arrays), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_complete(have: set[int], samples: Sequence[Mapping[str, Any]]) -> None:
    want = {s["sample_id"] for s in samples if s["role"] != "train"}
    missing, unknown = sorted(want - have), sorted(have - want)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(want)} samples have no embedding (the first is sample "
            f"{missing[0]}); was the whole test set run?"
        )
    if unknown:
        raise ValueError(
            f"{len(unknown)} samples with an embedding are not in the data set (the first is "
            f"sample {unknown[0]}); is it another test set?"
        )
