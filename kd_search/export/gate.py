"""The parity gate: an exported file must give what the training stack gives for the same files.

From the bytes of a picture file to boxes, scores and embeddings, because what differs between a
model in training and in use is above all the reading and resizing of pictures.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from kd_search.data import PersonSearchDatasetMapper
from kd_search.data.reid.mapper import CropMapper
from kd_search.export.gate_pictures import GatePicture
from kd_search.export.parity import ExportParityError
from kd_search.utils.inference import evaluating

#: Packages that the process of the runtime must not import.
_ABSENT = ("torch", "torchvision", "detectron2", "cv2", "scipy", "pydantic", "onnx")
_PROGRAM = f"""
import runpy, sys
for name in {_ABSENT!r}:
    sys.modules[name] = None  # importing it is an error
sys.argv[0] = "runtime"
runpy.run_module("kd_search.runtime", run_name="__main__", alter_sys=True)
"""
#: Overlap from which two boxes are the same person.
_SAME_PERSON = 0.9


class Tolerance(NamedTuple):
    """Largest differences that pass."""

    #: Pixels of the picture.
    boxes: float
    scores: float
    embeddings: float


TOLERANCE = Tolerance(1e-2, 1e-4, 1e-4)
#: Of weights that are stored in half precision: their rounding, not an error of the export.
HALF_TOLERANCE = Tolerance(0.5, 1e-2, 1e-2)


class Result(NamedTuple):
    """People and embedded boxes of one picture, as arrays."""

    boxes: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    query_embeddings: np.ndarray
    #: Of people with the query, if the network compares them itself.
    similarities: Optional[np.ndarray] = None


def run_runtime(model: Path, pictures: Sequence[GatePicture]) -> list[Result]:
    """Results of the runtime, in a process without torch and Detectron2.

    Raises:
        ExportParityError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        boxes = Path(folder, "boxes.json")
        boxes.write_text(json.dumps({p.file: p.boxes for p in pictures}))
        files = [picture.file for picture in pictures]
        found = runtime_arrays(model, files, ["--boxes", str(boxes)])
    if "scores" not in found:
        rows = (found["embeddings"][found["picture"] == i] for i in range(len(pictures)))
        return [_crops_only(embeddings) for embeddings in rows]
    results = []
    for index in range(len(pictures)):
        here = found["picture"] == index
        queries = found["query_embeddings"][found["query_picture"] == index]
        people = {name: found[name][here] for name in ("boxes", "scores", "embeddings")}
        results.append(Result(**people, query_embeddings=queries))
    return results


def runtime_arrays(
    model: Path, files: Sequence[str], options: Sequence[str]
) -> dict[str, np.ndarray]:
    """What ``python -m kd_search.runtime`` writes for files, in a process as above.

    Raises:
        ExportParityError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "people.npz")
        done = subprocess.run(
            [
                *(sys.executable, "-c", _PROGRAM, str(model), *files),
                *(*options, "--output", str(output)),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["unknown reason"])[-1]
            raise ExportParityError(f"the runtime fails with the exported model: {reason}")
        with np.load(output) as arrays:
            return dict(arrays)


@contextmanager
def lower_rows_first() -> Iterator[None]:
    """Let sorting keep the order of equal values, as exported files do.

    Detectron2 leaves it open which of equally good anchors it takes, and torch takes others on
    other processors. A network has many of them where a picture shows nothing.
    """
    real = torch.Tensor.sort

    def sort(self, dim=-1, descending=False):
        return real(self, dim=dim, descending=descending, stable=True)

    def topk(self, k, dim=-1):
        return tuple(part.narrow(dim, 0, k) for part in sort(self, dim, descending=True))

    with mock.patch.multiple(torch.Tensor, sort=sort, topk=topk):
        yield


def run_training_stack(model: Any, cfg: CfgNode, pictures: Sequence[GatePicture]) -> list[Result]:
    """Results of the network itself, with the mapper of a test set."""
    results = []
    with torch.no_grad(), evaluating(model), lower_rows_first():
        for sample in mapped(cfg, pictures):
            output = model([sample])[0]
            people = output["instances"]
            fields = (
                people.pred_boxes.tensor,
                people.scores,
                people.pred_embeddings,
                output["query_embeddings"],
            )
            results.append(Result(*(field.cpu().numpy() for field in fields)))
    return results


def run_program(
    program: Callable[..., Any],
    cfg: CfgNode,
    pictures: Sequence[GatePicture],
    divisor: int,
    least_side: int,
) -> list[Optional[Result]]:
    """Results of a torch.export program with the inputs and outputs of ``FlatPersonSearch``.

    ``None`` for pictures whose padded input has a side below ``least_side``.
    """
    results: list[Optional[Result]] = []
    with torch.no_grad():
        for sample in mapped(cfg, pictures):
            image, (height, width) = sample["image"], sample["image"].shape[1:]
            padding = (0, -width % divisor, 0, -height % divisor)
            padded = torch.nn.functional.pad(image, padding)
            if min(padded.shape[1:]) < least_side:
                results.append(None)
                continue
            size = torch.tensor([height, width])
            boxes, scores, embeddings, valid, queries = program(padded, size, sample["query_boxes"])
            scale = torch.tensor([sample["width"] / width, sample["height"] / height] * 2)
            boxes = boxes[valid] * scale
            fields = (boxes, scores[valid], embeddings[valid], queries)
            results.append(Result(*(field.numpy() for field in fields)))
    return results


def run_reid(
    embed: Callable[[torch.Tensor], torch.Tensor], cfg: CfgNode, pictures: Sequence[GatePicture]
) -> list[Result]:
    """Results of a re-ID network, with the mapper of a test set.

    Args:
        embed: (P, 3, h, w) uint8 crops to (P, D).
        cfg: of the network.
        pictures: whole where they have no boxes.
    """
    mapper = CropMapper(cfg, is_train=False)
    results = []
    with torch.no_grad():
        for picture in pictures:
            places: list[Any] = picture.boxes or [None]
            crops = torch.stack([mapper(picture.file, box) for box in places])
            results.append(_crops_only(embed(crops).cpu().numpy()))
    return results


def _crops_only(embeddings: np.ndarray) -> Result:
    none = np.zeros((0, 4), np.float32)
    return Result(none, none[:, 0], embeddings[:0], embeddings)


def mapped(cfg: CfgNode, pictures: Sequence[GatePicture]) -> Iterator[dict[str, Any]]:
    """Inputs of the network for picture files."""
    mapper = PersonSearchDatasetMapper(cfg, is_train=False)
    for picture in pictures:
        queries = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "query_id": i}
            for i, box in enumerate(picture.boxes)
        ]
        sample = mapper({"file_name": picture.file, "image_id": 0, "queries": queries})
        sample.setdefault("query_boxes", torch.zeros((0, 4)))
        yield sample


def compare(
    expected: Sequence[Result],
    found: Sequence[Result],
    pictures: Sequence[GatePicture],
    *,
    score_threshold: float,
    nms_threshold: float,
    tolerance: Tolerance = TOLERANCE,
) -> dict[str, Any]:
    """Compare results picture by picture.

    People are matched by their boxes. Results differ in their last digits, and so may fall on
    different sides of a threshold. A person without a partner is a *border case*, which is reported
    and passes, if its score differs from the score threshold by at most the tolerance, or its
    overlap with a better person from the threshold of non-maximum suppression by at most 1e-3.

    Returns:
        ``pictures``, ``people`` and ``pictures_without_people`` as numbers; ``max_difference`` by
        field; ``border_cases``; ``tolerance``; and ``rows`` by picture.

    Raises:
        ExportParityError: naming the first difference and its picture.
    """
    rows: list[dict[str, Any]] = []
    borders: list[dict[str, Any]] = []
    for picture, ours, theirs in zip(pictures, expected, found):
        name = os.path.basename(picture.file)
        pairs, alone = _match(ours, theirs)
        for result, index in alone:
            why = _border(result, index, score_threshold, nms_threshold, tolerance)
            if not why:
                raise ExportParityError(
                    f"the exported model differs from the model in {name}: one of them alone finds "
                    f"the person at {result.boxes[index].round(1).tolist()} with score "
                    f"{result.scores[index]:.4f}"
                )
            score = round(float(result.scores[index]), 6)
            borders.append({"picture": name, "score": score, "reason": why})
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        row: dict[str, Any] = {
            "boxes": _largest(ours.boxes[first], theirs.boxes[second]),
            "scores": _largest(ours.scores[first], theirs.scores[second]),
            "embeddings": _relative(ours.embeddings[first], theirs.embeddings[second]),
            "query_embeddings": _relative(ours.query_embeddings, theirs.query_embeddings),
        }
        if ours.similarities is not None and theirs.similarities is not None:
            row["similarities"] = _largest(ours.similarities[first], theirs.similarities[second])
        for field, difference in row.items():
            limit = getattr(tolerance, field, tolerance.embeddings)
            # Not ">", which NaN would pass.
            if not difference <= limit:
                raise ExportParityError(
                    f"the exported model differs from the model in {name}: {field} by "
                    f"{difference:.3g}, and {limit:g} is allowed"
                )
        rows.append({"picture": name, "people": len(ours.scores), **row})
    if not rows:
        raise ValueError("parity needs at least one picture to check")
    fields = [field for field in rows[0] if field not in ("picture", "people")]
    return {
        "pictures": len(rows),
        "people": sum(row["people"] for row in rows),
        "pictures_without_people": sum(row["people"] == 0 for row in rows),
        "max_difference": {field: max(row[field] for row in rows) for field in fields},
        "border_cases": borders,
        "tolerance": tolerance._asdict(),
        "rows": rows,
    }


def _match(first: Result, second: Result) -> tuple[list[tuple[int, int]], list[tuple[Result, int]]]:
    """Pairs of the same person in both, and people without a partner."""
    pairs = []
    overlaps = overlap(first.boxes, second.boxes)
    while overlaps.size and overlaps.max() >= _SAME_PERSON:
        i, j = np.unravel_index(overlaps.argmax(), overlaps.shape)
        pairs.append((int(i), int(j)))
        overlaps[i], overlaps[:, j] = -1, -1
    alone = [
        (result, index)
        for side, result in enumerate((first, second))
        for index in range(len(result.scores))
        if index not in {pair[side] for pair in pairs}
    ]
    return pairs, alone


def _border(
    result: Result, index: int, score_threshold: float, nms_threshold: float, tolerance: Tolerance
) -> str:
    """Why one side alone may have a person; empty if there is no reason."""
    score = result.scores[index]
    if abs(score - score_threshold) <= tolerance.scores:
        return "score at the threshold"
    better = result.scores > score
    overlaps = overlap(result.boxes[index : index + 1], result.boxes[better])
    if (abs(overlaps - nms_threshold) <= 1e-3).any():
        return "overlap at the threshold of non-maximum suppression"
    return ""


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-9)


def _relative(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference, relative to the largest value if that is above 1."""
    largest = _largest(first, second)
    return largest / max(1.0, float(np.abs(first).max())) if first.size else largest


def _largest(first: np.ndarray, second: np.ndarray) -> float:
    if first.shape != second.shape:
        return float("inf")
    if first.size == 0:
        return 0.0
    return float(np.abs(first.astype(np.float64) - second).max())
