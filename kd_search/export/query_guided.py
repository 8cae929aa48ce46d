"""Export of networks that compare a gallery picture with a query's picture themselves.

Such a network, of a project, has ``flat_query_guided()``, which returns its forward of fixed shapes
(inputs and outputs are :data:`INPUTS` and :data:`OUTPUTS`), and ``prepare_query(image, box)`` and
``search(query, batch)``, whose results that forward has to have. See docs/adding_a_method.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.export import Dim

from kd_search.export.gate import Result, lower_rows_first, mapped, runtime_arrays
from kd_search.export.gate_pictures import GatePicture
from kd_search.export.graph import LARGEST_SIDE, Graph
from kd_search.export.tracing import exportable
from kd_search.utils.inference import evaluating

INPUTS = ("image", "size", "query_image", "query_box")
OUTPUTS = ("boxes", "scores", "embeddings", "similarities", "valid", "query_embeddings")
_OF_PEOPLE = ("boxes", "scores", "embeddings", "similarities")
#: Queries that the gallery pictures are compared with, each with all.
_NUM_QUERIES = 3


class GatePair(NamedTuple):
    """A gallery picture and a query."""

    picture: GatePicture
    query: str
    #: XYXY in pixels of the upright picture of the query.
    box: list[float]


def query_guided_graph(model: nn.Module) -> Graph:
    """Graph of a network with the inputs and outputs of this module.

    Raises:
        ValueError: it has none, or a part that cannot be exported.
    """
    network: Any = exportable(model).model.cpu()
    if not hasattr(network, "flat_query_guided"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {type(network).__name__} has no query-guided search: export "
            "it without --query-guided"
        )
    flat = network.flat_query_guided().eval()
    if flat.size_divisibility != 1:
        raise ValueError("a query-guided network with padded inputs cannot be exported")
    least = max(shape.stride for shape in network.backbone.output_shape().values()) + 1
    noise = torch.Generator().manual_seed(0)
    sides = {"image": (256, 320), "query_image": (288, 224)}
    images = {
        name: torch.randint(0, 256, (3, *size), generator=noise, dtype=torch.uint8)
        for name, size in sides.items()
    }
    dims = {
        name: {
            place: Dim(f"{name}_{side}", min=least, max=LARGEST_SIDE)
            for place, side in ((1, "height"), (2, "width"))
        }
        for name in sides
    }
    return Graph(
        flat,
        {
            "image": images["image"],
            "size": torch.tensor(sides["image"]),
            "query_image": images["query_image"],
            "query_box": torch.tensor([[20.0, 30, 90, 200]]),
        },
        {"image": dims["image"], "size": None, "query_image": dims["query_image"], "query_box": {}},
        OUTPUTS,
        least_side=least,
    )


def gate_pairs(pictures: Sequence[GatePicture]) -> list[GatePair]:
    """Every picture with a few queries, which are boxes of pictures of different sizes."""
    asking = [picture for picture in pictures if picture.boxes]
    asking = asking[:: max(len(asking) // _NUM_QUERIES, 1)][:_NUM_QUERIES]
    return [GatePair(p, query.file, query.boxes[0]) for query in asking for p in pictures]


def run_pairs(network: Any, cfg: CfgNode, pairs: Sequence[GatePair]) -> list[Result]:
    """Results of the network itself, with the mapper of a test set."""
    results = []
    with torch.no_grad(), evaluating(network), lower_rows_first():
        for picture, query, box in pairs:
            (gallery,) = mapped(cfg, [GatePicture(picture.file, [])])
            (own,) = mapped(cfg, [GatePicture(query, [box])])
            prepared = network.prepare_query(own["image"], own["query_boxes"][0])
            (output,) = network.search(prepared, [gallery])
            people = output["instances"]
            fields = (
                people.pred_boxes.tensor,
                people.scores,
                people.pred_embeddings,
                output["query_embeddings"],
                people.pred_similarities,
            )
            results.append(Result(*(field.cpu().numpy() for field in fields)))
    return results


def run_runtime_pairs(model: Path, pairs: Sequence[GatePair]) -> list[Result]:
    """Results of the runtime, in a process without torch and Detectron2 for each query.

    Raises:
        ExportParityError: a process failed.
    """
    results: dict[tuple[Any, ...], Result] = {}
    queries = {(pair.query, tuple(pair.box)) for pair in pairs}
    for query, box in queries:
        own = [p for p in pairs if (p.query, tuple(p.box)) == (query, box)]
        files = [p.picture.file for p in own]
        options = ["--query", query, "--box", *map(str, box)]
        found = runtime_arrays(model, files, options)
        for index, pair in enumerate(own):
            here = found["picture"] == index
            people = {name: found[name][here] for name in _OF_PEOPLE}
            wanted = found["query_embeddings"][index : index + 1]
            results[_key(pair)] = Result(**people, query_embeddings=wanted)
    return [results[_key(pair)] for pair in pairs]


def _key(pair: GatePair) -> tuple[Any, ...]:
    return (pair.picture.file, pair.query, tuple(pair.box))
