"""Detections and embeddings of other software: a folder of plain arrays, without pickles.

``docs/evaluation.md`` lists the files, their shapes and meanings: images.txt, image_index.npy,
boxes.npy, scores.npy, embeddings.npy, query_embeddings.npy; optionally query_ids.npy and
gt_image_index.npy, gt_boxes.npy, gt_embeddings.npy.

Arrays are ``.npy`` files of numbers, of any real type. Nothing in them is executed: object arrays,
which numpy stores as pickles, are refused.
"""

from pathlib import Path
from typing import Callable, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import (
    UNIT_LENGTH_TOLERANCE,
    AnyPath,
    Shape,
    check_floats,
    check_integers,
)
from kd_search.evaluation.search.predictions import DetectionSet, ImageId
from kd_search.evaluation.search.test_set import DatasetDicts, flatten_annotations

BOX_FORMATS = ("xyxy", "xywh")


def load_plain_arrays(
    folder: AnyPath,
    dataset_dicts: DatasetDicts,
    *,
    box_format: str = "xyxy",
    normalise: bool = False,
) -> DetectionSet:
    """Read a folder with the files above.

    Args:
        dataset_dicts: of the test set; images are identified by id, by file name, or by file name
            without folder or without folder and extension.
        box_format: one of :data:`BOX_FORMATS`.
        normalise: divide embeddings by their length; otherwise other lengths than 1 are refused.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read or does not fit; the message names the file.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format {box_format!r}; use one of {', '.join(BOX_FORMATS)}")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of arrays")
    image_ids = _image_ids(folder / "images.txt", dataset_dicts)
    offsets, boxes, embeddings, order = _rows(folder, "", image_ids, box_format, normalise)
    scores = _read(folder / "scores.npy", check_floats, (len(order),))
    queries = _embeddings(folder / "query_embeddings.npy", None, normalise)
    given = {}
    if any(
        (folder / f"gt_{name}.npy").is_file() for name in ("image_index", "boxes", "embeddings")
    ):
        parts = _rows(folder, "gt_", image_ids, box_format, normalise)
        given = dict(zip(("gt_offsets", "gt_boxes", "gt_embeddings"), parts))
    try:
        return DetectionSet(
            image_ids,
            offsets,
            boxes,
            scores[order],
            embeddings,
            _query_ids(folder / "query_ids.npy", dataset_dicts, len(queries)),
            queries,
            **given,
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _rows(
    folder: Path, prefix: str, image_ids: list[ImageId], box_format: str, normalise: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, boxes and embeddings sorted by image, and that order."""
    path = folder / f"{prefix}image_index.npy"
    index = _read(path, check_integers, (None,))
    if len(index) and (index.min() < 0 or index.max() >= len(image_ids)):
        row = int(np.flatnonzero((index < 0) | (index >= len(image_ids)))[0])
        raise ValueError(
            f"{path}: row {row} names image {index[row]}, but images.txt has {len(image_ids)} lines"
        )
    path = folder / f"{prefix}boxes.npy"
    boxes = _read(path, check_floats, (len(index), 4)).astype(np.float32)
    if box_format == "xywh":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    inverted = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(inverted):
        raise ValueError(
            f"{path}: {len(inverted)} of {len(boxes)} boxes end before they start (the first is "
            f"row {inverted[0]}); is their format {box_format}?"
        )
    embeddings = _embeddings(folder / f"{prefix}embeddings.npy", len(index), normalise)
    order = np.argsort(index, kind="stable")
    offsets = np.searchsorted(index[order], np.arange(len(image_ids) + 1))
    return offsets, boxes[order], embeddings[order], order


def _embeddings(path: Path, count: Optional[int], normalise: bool) -> np.ndarray:
    rows = _read(path, check_floats, (count, None)).astype(np.float32)
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if normalise:
        rows = (rows / np.where(length > 0, length, 1)).astype(np.float32)
    elif (np.abs(length[length > 0] - 1) > UNIT_LENGTH_TOLERANCE).any():
        raise ValueError(
            f"{path}: embeddings are not of unit length (from {length.min():.3g} to "
            f"{length.max():.3g}); normalise them, or set normalise"
        )
    return rows


def _query_ids(path: Path, dataset_dicts: DatasetDicts, count: int) -> np.ndarray:
    if path.is_file():
        return _read(path, check_integers, (count,))
    ids = np.sort(flatten_annotations(dataset_dicts).query_ids)
    if len(ids) != count:
        raise ValueError(
            f"{path.with_name('query_embeddings.npy')}: {count} rows, but the set has {len(ids)} "
            "queries; list their ids in query_ids.npy"
        )
    return ids


def _image_ids(path: Path, dataset_dicts: DatasetDicts) -> list[ImageId]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    names: dict[str, set[ImageId]] = {}
    for image in dataset_dicts:
        file_name = str(image.get("file_name", "")).replace("\\", "/")
        base = file_name.rpartition("/")[2]
        for name in {str(image["image_id"]), file_name, base, base.rpartition(".")[0] or base}:
            names.setdefault(name, set()).add(image["image_id"])
    ids: list[ImageId] = []
    for line, name in enumerate(text.splitlines(), 1):
        found = names.get(name.strip().replace("\\", "/"), set())
        if len(found) != 1:
            problem = f"{len(found)} images" if found else "no image"
            raise ValueError(f"{path}, line {line}: {problem} of the set named {name.strip()!r}")
        ids.extend(found)
    return ids


def _read(
    path: Path, check: Callable[[str, np.ndarray, Shape], np.ndarray], shape: Shape
) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    # A corrupt or hostile file makes numpy raise errors of a dozen kinds.
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive, not an array")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not an array of numbers in a .npy file ({reason})") from None
    try:
        return check(path.stem, array, shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
