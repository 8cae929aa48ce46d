"""What is given to a gallery for each file, and the row that it becomes."""

import time
from dataclasses import dataclass
from typing import Optional

import numpy as np

from .database import INDEXED, NOBODY, UNREADABLE, FileRow
from .segments import Place

#: How far a length may be from one.
_UNIT = 1e-3


@dataclass
class NewFile:
    """One file for :meth:`kd_search.gallery.GalleryWriter.add`."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    width: int = 0
    height: int = 0
    #: Length of a video.
    seconds: float = 0.0
    camera: Optional[str] = None
    time: Optional[float] = None
    #: (N, D) float32 of unit length and :data:`~kd_search.gallery.segments.PEOPLE` (N,); ``None``
    #: for content that is in the gallery already, and for unreadable files.
    embeddings: Optional[np.ndarray] = None
    people: Optional[np.ndarray] = None
    #: Key of the rules that gave camera and time.
    rules: int = 0
    #: Why it cannot be read.
    message: str = ""

    def check(self, embedding_dim: int) -> None:
        """Raise :class:`ValueError` if the embeddings are not (N, D), finite and of unit length."""
        if self.embeddings is None:
            return
        rows = np.asarray(self.embeddings)
        fits = rows.shape == (len(rows), embedding_dim)
        if not fits or self.people is None or len(self.people) != len(rows):
            raise ValueError(f"{self.path}: embeddings of shape {rows.shape}, D is {embedding_dim}")
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        if not (np.abs(lengths - 1) < _UNIT).all():
            raise ValueError(
                f"{self.path}: the network's embeddings are not of unit length: are its weights "
                "bad?"
            )

    def row(self, number: int, known: Optional[FileRow], place: Optional[Place]) -> FileRow:
        """The row of the file.

        Args:
            number: its id.
            known: a file with the same content, for a file without embeddings.
            place: of its people.
        """
        state, found, content = UNREADABLE, 0, number
        shape = self.width, self.height, self.seconds
        if self.embeddings is not None:
            found = len(self.embeddings)
            state = INDEXED if found else NOBODY
        elif known is not None and not self.message:
            place, state, found, content = known.place, known.state, known.found, known.content
            shape = known.width, known.height, known.seconds
        return FileRow(
            number,
            self.path,
            self.size,
            self.mtime_ns,
            self.sha256,
            state,
            found,
            *shape,
            self.camera,
            self.time,
            content,
            *(place or (0, 0, 0)),
            time.time(),
            self.rules,
            self.message,
        )
