"""Comparison of an exported network with its model, image by image."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from kd_search.export.exported_file import Exported
from kd_search.export.tracing import inference_model
from kd_search.utils.inference import evaluating

FIELDS = ("boxes", "scores", "embeddings", "query_embeddings")
#: Boxes of the query check, as fractions of width, height, width, height.
_QUERIES = ((0.0, 0.0, 1.0, 1.0), (0.25, 0.1, 0.5, 0.8), (0.6, 0.3, 0.65, 0.5))
#: How many of them each image uses, in turn: shows a number that tracing has made constant.
_NUM_QUERIES = (3, 0, 1, 2)
#: Calls with the first image: TorchScript optimises a graph after its first runs, and the optimised
#: graph, specialised to the size of the first image, has to fit the other images.
_FIRST_CALLS = 3


class ExportParityError(RuntimeError):
    """The results of an exported network differ from those of its model."""


def check_parity(
    model: nn.Module,
    exported: Exported,
    images: Iterable[torch.Tensor],
    tolerance: float = 1e-5,
) -> dict[str, Any]:
    """Compare model and exported network, and return the differences.

    People are detected in every image, and zero to three given boxes of it are embedded. Both
    networks must detect the same people in the same order. The difference of a field in an image is
    max|model - exported|, divided by the largest magnitude of the field if that is above 1:
    relative for boxes, absolute for scores and embeddings. On a CPU 0.0 was measured throughout;
    the tolerance is for devices that choose a convolution's algorithm by timing it.

    Args:
        model: the exported one, in any mode, which is kept.
        exported: of :func:`load_exported`.
        images: (3, H, W) network inputs, of different sizes and numbers of people.
        tolerance: largest difference that passes.

    Returns:
        ``tolerance``; ``max_difference`` by field; ``zero_detections``, whether some image has no
        detections; and ``images``, for each its ``size`` [H, W], the number of ``detections`` and
        the difference by field.

    Raises:
        ExportParityError: naming the worst field, its difference and the image.
        ValueError: there are no images.
    """
    rows: list[dict[str, Any]] = []
    eager = inference_model(model)
    with torch.no_grad(), evaluating(eager):
        for image in images:
            image = image.to(eager.device)
            queries = _query_boxes(image, _NUM_QUERIES[len(rows) % len(_NUM_QUERIES)])
            expected = _run_model(eager, image, queries)
            calls = [
                _compare(expected, _run_exported(exported, image, queries), image, len(rows))
                for _ in range(1 if rows else _FIRST_CALLS)
            ]
            rows.append({**calls[0], **{f: _largest(call[f] for call in calls) for f in FIELDS}})
    if not rows:
        raise ValueError("parity needs at least one image to check")
    worst = {field: _largest(row[field] for row in rows) for field in FIELDS}
    field = max(FIELDS, key=lambda name: _badness(worst[name]))
    if not worst[field] <= tolerance:
        index, row = max(enumerate(rows), key=lambda item: _badness(item[1][field]))
        height, width = row["size"]
        raise ExportParityError(
            f"the exported model differs from the model: {field} by {worst[field]:.3g} "
            f"(tolerance {tolerance:.3g}) in image {index} of {height}x{width}"
        )
    return {
        "tolerance": tolerance,
        "max_difference": worst,
        "zero_detections": any(row["detections"] == 0 for row in rows),
        "images": rows,
    }


def probe_images(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[torch.Tensor]:
    """Return synthetic network inputs: uniform grey, without a detection, then noise.

    Args:
        sizes: (H, W) of each.
        seed: of the noise.

    Returns:
        uint8 images (3, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    images: list[torch.Tensor] = []
    for height, width in sizes:
        if not images:
            images.append(torch.full((3, height, width), 114, dtype=torch.uint8))
            continue
        # Coarse noise, because deep layers average per-pixel noise to uniform grey.
        coarse = torch.rand((1, 3, height // 16 + 1, width // 16 + 1), generator=generator)
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        images.append((smooth * 255).to(torch.uint8))
    return images


def _run_model(model: Any, image: torch.Tensor, queries: torch.Tensor) -> dict[str, torch.Tensor]:
    batch = [{"image": image}]
    people = model(batch)[0]["instances"]
    return {
        "boxes": people.pred_boxes.tensor,
        "scores": people.scores,
        "embeddings": people.pred_embeddings,
        "query_embeddings": model.embed(batch, [queries]),
    }


def _run_exported(
    exported: Exported, image: torch.Tensor, queries: torch.Tensor
) -> dict[str, torch.Tensor]:
    try:
        boxes, scores, embeddings = exported.module(image)
        query_embeddings = exported.module.embed(image, queries)
    except (RuntimeError, torch.jit.Error) as error:
        # The cause is the last line of TorchScript's message.
        reason = (str(error).strip().splitlines() or ["unknown reason"])[-1]
        height, width = image.shape[1:]
        raise ExportParityError(
            f"the exported model fails on an image of {height}x{width}: {reason}"
        ) from error
    return {
        "boxes": boxes,
        "scores": scores,
        "embeddings": embeddings,
        "query_embeddings": query_embeddings,
    }


def _query_boxes(image: torch.Tensor, count: int) -> torch.Tensor:
    height, width = image.shape[1:]
    size = torch.tensor([width, height, width, height], device=image.device)
    return torch.tensor(_QUERIES, device=image.device)[:count] * size


def _compare(
    expected: dict[str, torch.Tensor],
    found: dict[str, torch.Tensor],
    image: torch.Tensor,
    index: int,
) -> dict[str, Any]:
    height, width = image.shape[1:]
    where = f"in image {index} of {height}x{width}"
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ExportParityError(
                f"the exported model differs from the model: {name} are "
                f"{tuple(found[name].shape)} instead of {tuple(tensor.shape)} {where}"
            )
    differences = {name: _difference(expected[name], found[name]) for name in FIELDS}
    return {"size": [height, width], "detections": len(expected["boxes"]), **differences}


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    expected, found = expected.double(), found.double()
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1.0))


def _badness(difference: float) -> float:
    """Sort key of differences, NaN highest: max() alone could drop it."""
    return difference if difference == difference else float("inf")


def _largest(differences: Iterable[float]) -> float:
    return max(differences, key=_badness)
