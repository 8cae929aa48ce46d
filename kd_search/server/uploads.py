"""Pictures of wanted people, kept in memory for a while and never written to a disk."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kd_search.utils.pictures import ImageError, decode_image

from .errors import ApiError

#: First bytes of the files that are accepted. Pillow chooses the decoder by them too, so that none
#: of its many others ever sees an upload.
_KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}
_SECONDS, _PICTURES, _BYTES = 1800.0, 256, 200_000_000


@dataclass
class Upload:
    """A picture and the people in it."""

    content: bytes
    sha256: str
    width: int
    height: int
    #: (N, 4) XYXY, (N,) and (N, D) of the detected people.
    boxes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    used: float = field(default_factory=time.monotonic)


class Uploads:
    """The last pictures, by ids that cannot be guessed. Methods may be called from any thread."""

    def __init__(self, searcher: Any, max_pixels: int):
        """
        Args:
            searcher: :class:`kd_search.runtime.PersonSearcher`.
            max_pixels: larger pictures are refused by their header, before they are decoded.
        """
        self._searcher, self._max_pixels = searcher, max_pixels
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()
        #: One picture is decoded at a time, and the network uses all cores for it.
        self._network = threading.Lock()

    def add(self, content: bytes, kind: str) -> Upload:
        """Detect the people in a picture and keep it.

        Args:
            content: of a file.
            kind: its media type as the client says.

        Raises:
            ApiError: it is no picture, another one than its type says, or too large.
        """
        if kind not in _KINDS.values():
            raise ApiError(415, "type", "send a picture as image/jpeg or image/png")
        if not any(content.startswith(head) and kind == _KINDS[head] for head in _KINDS):
            raise ApiError(415, "type", f"the body is no {kind}")
        with self._network:
            pixels = self._decode(content)
            boxes, scores, embeddings = self._searcher.detect(pixels)
        # Those whom a gallery would hold; in a difficult picture rather somebody than nobody.
        keep = scores >= self._searcher.manifest["search_score_threshold"]
        if keep.any():
            boxes, scores, embeddings = boxes[keep], scores[keep], embeddings[keep]
        height, width = pixels.shape[:2]
        digest = hashlib.sha256(content).hexdigest()
        upload = Upload(content, digest, width, height, boxes, scores, embeddings)
        with self._lock:
            self._kept[upload.id] = upload
            self._clean()
        return upload

    def get(self, picture: str) -> Upload:
        """A kept picture.

        Raises:
            ApiError: it is not kept (any more).
        """
        with self._lock:
            self._clean()
            upload = self._kept.get(picture)
            if upload is None:
                message = "the picture is not kept any more: send it again"
                raise ApiError(404, "picture-gone", message)
            upload.used = time.monotonic()
            self._kept.move_to_end(picture)
            return upload

    def pixels(self, upload: Upload) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a kept picture."""
        return self._decode(upload.content)

    def embed(self, upload: Upload, box: Sequence[float]) -> np.ndarray:
        """(D,) embedding of a box in a kept picture.

        Raises:
            ApiError: the box has no area in it.
        """
        with self._network:
            try:
                return self._searcher.embed(self._decode(upload.content), [box])[0]
            except ValueError as error:
                raise ApiError(422, "box", str(error)) from None

    def _decode(self, content: bytes) -> np.ndarray:
        try:
            return decode_image("picture", content, "RGB", self._max_pixels, "the server's limit")
        except ImageError as error:
            raise ApiError(422, "picture", str(error)) from None

    def _clean(self) -> None:
        """Drop what was not used for long, and the oldest where there is too much."""
        oldest = time.monotonic() - _SECONDS
        size = sum(len(upload.content) for upload in self._kept.values())
        while self._kept:
            upload = next(iter(self._kept.values()))
            if upload.used > oldest and len(self._kept) <= _PICTURES and size <= _BYTES:
                break
            size -= len(upload.content)
            self._kept.popitem(last=False)
