"""Embeddings of a re-ID test set, and the file that keeps them.

The file is an ``.npz`` archive (zip of ``.npy`` arrays, no pickles) with the fields of
:class:`ReIDEmbeddings` and ``metadata``: UTF-8 JSON as uint8, an object with "format", "version"
and what the writer adds.
"""

import json
import os
import zipfile
from dataclasses import dataclass, fields
from typing import Union

import numpy as np

from kd_search.evaluation.flat_arrays import (
    check_floats,
    check_integers,
)
from kd_search.evaluation.reid.arrays import ReIDSet
from kd_search.utils.files import atomic_write

#: What is searched for, and among what: a single image or the whole tracklet (VKD, ECCV 2020).
SETTINGS = ("image-to-image", "image-to-video", "video-to-image", "video-to-video")

FORMAT = "kd_search.reid_embeddings"
VERSION = 1
_ROLES = ("query_image", "query_video", "gallery_image", "gallery_video")


@dataclass
class ReIDEmbeddings:
    """N entries: what the network saw at once, an image or the frames of a tracklet.

    Raises ValueError, naming the array, where shapes or types do not fit.
    """

    embeddings: np.ndarray  # (N, D) float32
    sample_ids: np.ndarray  # (N,) int64, of the data set; several images of a tracklet share one
    person_ids: np.ndarray  # (N,) int64, row of the identity; -1 for a distractor
    camera_ids: np.ndarray  # (N,) int64; -1 unknown
    frame_ids: np.ndarray  # (N,) int64, of the first frame in its video; -1 unknown
    query_image: np.ndarray  # (N,) bool, what is searched for where a query is an image
    query_video: np.ndarray  # (N,) bool, the same where it is a tracklet
    gallery_image: np.ndarray  # (N,) bool, what is searched where the gallery holds images
    gallery_video: np.ndarray  # (N,) bool, the same where it holds tracklets

    def __post_init__(self):
        self.embeddings = check_floats("embeddings", self.embeddings, (None, None))
        count = (len(self.embeddings),)
        for name in ("sample_ids", "person_ids", "camera_ids", "frame_ids"):
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
            ValueError: the setting is none of :data:`SETTINGS`, or there is nothing of it here.
        """
        if setting not in SETTINGS:
            raise ValueError(f"setting {setting!r} is none of {', '.join(SETTINGS)}")
        query_view, _, gallery_view = setting.partition("-to-")
        rows = []
        for role in (f"query_{query_view}", f"gallery_{gallery_view}"):
            rows.append(np.flatnonzero(getattr(self, role)))
            if not len(rows[-1]):
                what = role.replace("_", " as ").replace("query", "queries")
                raise ValueError(f"{setting}: no embeddings of the {what}; was it run for this?")
        return rows[0], rows[1]

    def select(self, rows: np.ndarray) -> ReIDSet:
        """Entries as the metric takes them; an entry is not searched for in its own sample."""
        return ReIDSet(
            self.embeddings[rows],
            self.person_ids[rows],
            self.camera_ids[rows],
            self.frame_ids[rows],
            self.sample_ids[rows],
        )


def save_reid_embeddings(
    path: Union[str, os.PathLike], embeddings: ReIDEmbeddings, **metadata
) -> None:
    """Write embeddings; the file is there whole or not at all.

    Args:
        metadata: JSON values to keep beside the arrays, such as ``dataset``.
    """
    arrays = {field.name: getattr(embeddings, field.name) for field in fields(embeddings)}
    text = json.dumps({"format": FORMAT, "version": VERSION, **metadata})
    arrays["metadata"] = np.frombuffer(text.encode(), dtype=np.uint8)
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def load_reid_embeddings(path: Union[str, os.PathLike]) -> tuple[ReIDEmbeddings, dict]:
    """Read a file of :func:`save_reid_embeddings`. Nothing in it is executed.

    Returns:
        The embeddings and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is torn, of another format, or an entry is missing or does not fit. One
            line that names the file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of embeddings")
    names = [field.name for field in fields(ReIDEmbeddings)]
    # A torn or hostile file makes the readers of zip and npy raise errors of a dozen kinds.
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an .npz archive, or torn")
        with np.load(path, allow_pickle=False) as archive:
            metadata = json.loads(archive["metadata"].astype(np.uint8, casting="safe").tobytes())
            if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
                raise ValueError(f"metadata does not say format {FORMAT!r}; it is another file")
            if metadata.get("version") != VERSION:
                raise ValueError(f"version {metadata.get('version')!r}; this reads {VERSION}")
            return ReIDEmbeddings(**{name: archive[name] for name in names}), metadata
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read ({reason})") from None
