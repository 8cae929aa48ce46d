"""Exported networks in onnxruntime."""

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import onnxruntime

from kd_search.runtime.manifest import (
    METADATA_KEY,
    ModelFileError,
    PathLike,
    inner_manifest,
    manifest_path,
    read_manifest,
)
from kd_search.runtime.onnx_file import OnnxError, read_header, with_outputs
from kd_search.runtime.pictures import Picture, crop_input, network_input, read_picture
from kd_search.utils.pictures import ImageError
from kd_search.utils.threads import usable_cores

#: Crops that a re-ID network embeds at once.
_BATCH = 32


class People(NamedTuple):
    """People of a picture, highest score first."""

    #: (N, 4) float32, XYXY in pixels of the upright picture; N may be 0.
    boxes: np.ndarray
    #: (N,) float32 in [0, 1].
    scores: np.ndarray
    #: (N, D) float32 of length one; their product is the cosine similarity.
    embeddings: np.ndarray


class Answer(NamedTuple):
    """Answer for one of many pictures."""

    picture: Picture
    #: ``None`` if the picture could not be read.
    people: Optional[People]
    #: Why the picture could not be read, in one line; empty otherwise.
    error: str


class _Model:
    """Session and manifest of a file."""

    network = ""
    #: Of the session that is made when the file is loaded.
    _first_outputs: tuple[str, ...] = ()

    def __init__(self, content: bytes, manifest: dict[str, Any], path: PathLike, threads: int):
        """Use :meth:`load`."""
        self._content = content
        self._path = path
        self._threads = threads
        self._sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}
        self._lock = threading.Lock()
        self._session(self._first_outputs)
        #: All that is known of the network, see the documentation of the runtime.
        self.manifest = manifest

    @classmethod
    def load(cls, path: PathLike, threads: Optional[int] = None) -> Any:
        """Load a model file and its manifest ``<path>.json``.

        Args:
            path: ONNX file that ``kd-search export`` wrote.
            threads: of each picture; ``None`` for all usable cores.

        Raises:
            FileNotFoundError: there is no such file.
            ModelFileError: model or manifest is damaged, foreign, of a newer version, or refers to
                custom operators or to other files; one line.
        """
        return cls(*_load(path, cls.network), path, threads or usable_cores())

    def _session(self, outputs: tuple[str, ...]) -> onnxruntime.InferenceSession:
        """Session of the part of the graph that these outputs need; made at its first use."""
        with self._lock:
            if outputs not in self._sessions:
                self._sessions[outputs] = _start(self._content, outputs, self._path, self._threads)
            return self._sessions[outputs]


class PersonSearcher(_Model):
    """Finds and embeds people: a person search network in onnxruntime.

    Methods may be called from several threads at once.
    """

    network = "person_search"
    _first_outputs = ("boxes", "scores", "embeddings", "valid")

    def detect(self, picture: Picture) -> People:
        """Detect people and embed them.

        Args:
            picture: file, bytes of a file, or (H, W, 3) uint8 RGB pixels.

        Returns:
            Those above the ``score_threshold`` of the manifest.

        Raises:
            ImageError: the picture cannot be read; one line.
        """
        return self.detect_pixels(read_picture(picture, self.manifest["max_pixels"]))

    def detect_pixels(self, rgb: np.ndarray) -> People:
        """As :meth:`detect`, for pixels that :func:`read_picture` has read."""
        image, size = network_input(rgb, self.manifest)
        none = np.zeros((0, 4), np.float32)
        boxes, scores, embeddings, valid = self._run(self._first_outputs, image, size, none)
        boxes, keep = in_picture(boxes[valid], size, rgb)
        return People(boxes[keep], scores[valid][keep], embeddings[valid][keep])

    def embed(self, picture: Picture, boxes: Any) -> np.ndarray:
        """Embed given boxes of people, such as queries.

        Args:
            picture: as :meth:`detect`.
            boxes: (Q, 4) XYXY in pixels of the upright picture; Q may be 0.

        Returns:
            (Q, D) float32 embeddings of length one.

        Raises:
            ImageError: the picture cannot be read.
            ValueError: a box is not four numbers, or has no area in the picture.
        """
        given = np.asarray(boxes, np.float64).reshape(-1, 4) if len(boxes) else np.zeros((0, 4))
        rgb = read_picture(picture, self.manifest["max_pixels"])
        image, size = network_input(rgb, self.manifest)
        scaled = in_input(given, size, rgb)
        return self._run(("query_embeddings",), image, size, scaled)[0]

    def detect_many(
        self,
        pictures: Iterable[Picture],
        *,
        workers: int = 1,
        progress: Optional[Callable[[int], None]] = None,
    ) -> Iterator[Answer]:
        """Detect people in many pictures; the answers come in the order of the pictures.

        A picture that cannot be read is an answer with an error, and the others follow. The result
        of a picture does not depend on the others.

        Args:
            pictures: as :meth:`detect`.
            workers: pictures that are processed at the same time.
            progress: called with the number of finished pictures after each.
        """
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            waiting: deque[tuple[Picture, Future[People]]] = deque()
            done = 0
            pictures = iter(pictures)
            while True:
                while len(waiting) < 2 * max(workers, 1):
                    picture = next(pictures, None)
                    if picture is None:
                        break
                    waiting.append((picture, pool.submit(self.detect, picture)))
                if not waiting:
                    return
                picture, future = waiting.popleft()
                try:
                    answer = Answer(picture, future.result(), "")
                except ImageError as error:
                    answer = Answer(picture, None, str(error))
                done += 1
                if progress is not None:
                    progress(done)
                yield answer

    def _run(
        self,
        outputs: tuple[str, ...],
        image: np.ndarray,
        size: tuple[int, int],
        boxes: np.ndarray,
    ) -> list[np.ndarray]:
        inputs = {"image": image, "size": np.array(size, np.int64), "query_boxes": boxes}
        return self._session(outputs).run(outputs, inputs)


class ReIDEmbedder(_Model):
    """Embeds crops of people: a re-ID network in onnxruntime."""

    network = "reid"
    _first_outputs = ("embeddings",)

    def embed(self, pictures: Iterable[Picture], boxes: Optional[Sequence[Any]] = None) -> Any:
        """Embed pictures that show one person each, or a box of each.

        Args:
            pictures: as :meth:`PersonSearcher.detect`.
            boxes: XYXY in pixels of the upright pictures, one for each; ``None``: whole pictures.

        Returns:
            (P, D) float32 embeddings. They are not of length one.

        Raises:
            ImageError: a picture cannot be read, or its box lies outside of it.
        """
        pictures = list(pictures)
        places = [None] * len(pictures) if boxes is None else list(boxes)
        if len(places) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures have {len(places)} boxes")
        rows = [np.zeros((0, self.manifest["embedding_dim"]), np.float32)]
        crops: list[np.ndarray] = []
        last: tuple[Any, np.ndarray] = (None, np.zeros(0))
        for picture, box in zip(pictures, places):
            # People of one scene often follow each other.
            if picture is not last[0]:
                last = picture, read_picture(picture, self.manifest["max_pixels"])
            crops.append(crop_input(last[1], box, self.manifest))
            if len(crops) == _BATCH:
                rows.append(self._run(crops))
                crops = []
        return np.concatenate([*rows, self._run(crops)] if crops else rows)

    def _run(self, crops: list[np.ndarray]) -> np.ndarray:
        return self._session(self._first_outputs).run(None, {"crops": np.stack(crops)})[0]


def in_picture(
    boxes: np.ndarray, size: tuple[int, int], rgb: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of a network input of ``size`` in pixels of the picture, and which have an area."""
    height, width = rgb.shape[:2]
    boxes = boxes * _scales(size, (height, width))
    limit = np.array([width, height, width, height], np.float32)
    boxes = np.minimum(np.maximum(boxes, 0), limit)
    return boxes, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def in_input(boxes: np.ndarray, size: tuple[int, int], rgb: np.ndarray) -> np.ndarray:
    """Given boxes (Q, 4) of a picture in pixels of the network input of ``size``, float32.

    Raises:
        ValueError: a box has no area in the picture.
    """
    height, width = rgb.shape[:2]
    limit = np.array([size[1], size[0], size[1], size[0]], np.float64)
    scaled = np.clip(boxes / _scales(size, (height, width), np.float64), 0, limit)
    if not ((scaled[:, 2] > scaled[:, 0]) & (scaled[:, 3] > scaled[:, 1])).all():
        raise ValueError(f"a box has no area in the picture of {width} x {height} pixels")
    return scaled.astype(np.float32)


def _scales(size: tuple[int, int], original: tuple[int, int], dtype: Any = np.float32) -> Any:
    """Factors of XYXY from a network input of ``size`` to the picture (heights, widths)."""
    x, y = original[1] / size[1], original[0] / size[0]
    return np.array([x, y, x, y], dtype)


def _load(path: PathLike, network: str) -> tuple[bytes, dict[str, Any]]:
    """Checked content and manifest of a file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"model {path} does not exist: write it with kd-search export")
    manifest = read_manifest(manifest_path(path))
    if manifest["network"] != network:
        raise ModelFileError(f"{path}: is a {manifest['network']} network, not {network}")
    if manifest["file_format"] != "onnx":
        raise ModelFileError(f"{path}: has the format {manifest['file_format']}, not onnx")
    with open(path, "rb") as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != manifest["file_sha256"]:
        raise ModelFileError(_why_different(path, content, manifest))
    try:
        header = read_header(content)
    except OnnxError as error:
        raise ModelFileError(f"{path}: {error}") from None
    if header.metadata.get(METADATA_KEY, "") != inner_manifest(manifest):
        raise ModelFileError(f"{path}: its own copy of the manifest differs from the one beside it")
    return content, manifest


def _start(
    content: bytes, outputs: Sequence[str], path: PathLike, threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # The graph has few branches that could run at the same time.
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            with_outputs(content, outputs), options, providers=["CPUExecutionProvider"]
        )
    except OnnxError as error:
        raise ModelFileError(f"{path}: {error}") from None
    except Exception as error:  # onnxruntime has many types of its own
        reason = (str(error).strip().splitlines() or ["unknown reason"])[0]
        raise ModelFileError(f"{path}: onnxruntime cannot load it ({reason})") from None


def _why_different(path: PathLike, content: bytes, manifest: dict[str, Any]) -> str:
    """Message for a file that is not the one of its manifest."""
    try:
        inner = json.loads(read_header(content).metadata.get(METADATA_KEY, "{}"))
        weights = inner.get("weights_sha256") if isinstance(inner, dict) else None
    except ValueError:
        weights = manifest["weights_sha256"]
    if len(content) < manifest["file_bytes"] and weights == manifest["weights_sha256"]:
        return f"{path}: is truncated: {len(content)} of {manifest['file_bytes']} bytes"
    if weights != manifest["weights_sha256"]:
        return f"{path}: is not the model of {manifest_path(path)}, which is another model's"
    return f"{path}: is damaged: its content does not match the SHA-256 of its manifest"
