#!/usr/bin/env python3
"""Search for a person in a folder of your own pictures.

    python tools/search.py --config-file CONFIG --weights model_final.pth \\
        --query street.jpg --box 120 40 180 220 --gallery photos/ --output found.html

Every picture of the gallery folder and of its subfolders is searched; the most similar person of
each counts. The result is a self-contained .html file, or a .png or .jpg, with a .json of the same
name beside it. Without --box, the detection with the highest score is searched for. A distillation
config stands for its student.

Exit status: 0 searched, 2 the input cannot be used, 130 interrupted.
"""
# ruff: noqa: E402

from kd_search.utils.threads import wait_passively

wait_passively()  # before anything imports torch

import argparse
import heapq
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tqdm import tqdm

import kd_search.modeling  # noqa: F401  registers the networks
from kd_search.checkpoint import load_trained
from kd_search.config import import_modules
from kd_search.data import ImageError, PersonSearchDatasetMapper, read_image
from kd_search.engine import build_config
from kd_search.engine.defaults import add_import_argument
from kd_search.visualization import write_picture
from kd_search.visualization.drawing import FAINT_INK, INK, PANEL, write_file
from kd_search.visualization.own_search_page import draw_own_search, write_own_search_page
from kd_search.visualization.tiles import Tile

_PAGES = (".html", ".htm")
_PICTURES = (".png", ".jpg", ".jpeg")
_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
# Number of unreadable files that are printed; the JSON file names all.
_NAMED = 20


@dataclass(order=True)
class Hit:
    """The most similar person of one picture; the least similar hit is the smallest."""

    similarity: float
    #: Ties go to the picture that comes first.
    order: int
    image: str = field(compare=False)
    #: XYXY, pixels of the upright picture.
    box: list[float] = field(compare=False)
    score: float = field(compare=False)


@dataclass
class Query:
    """The wanted person."""

    image: str
    box: list[float]
    #: Of the detector; ``None`` for a given box.
    score: Optional[float]
    #: (D,) unit length.
    embedding: np.ndarray


@dataclass
class Outcome:
    """Results of a search, and the pictures without results."""

    #: Best first.
    hits: list[Hit]
    #: Pictures that were searched, and how many of them had no detection.
    searched: int = 0
    empty: int = 0
    #: Messages, each naming its file.
    unreadable: list[str] = field(default_factory=list)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE", required=True, help="of the network")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default MODEL.WEIGHTS")
    parser.add_argument("--query", metavar="IMAGE", required=True, help="shows the wanted person")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="around the wanted person, in pixels of the query picture as viewers show it",
    )
    parser.add_argument("--gallery", metavar="FOLDER", required=True, help="pictures to search")
    parser.add_argument("--output", metavar="FILE", required=True, help=".html, .png or .jpg")
    parser.add_argument("--top-k", type=int, default=20, metavar="K", help="default: 20")
    add_import_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser


def main(argv: Optional[list] = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        _search(args)
    except (OSError, ValueError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("search: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


def _search(args: argparse.Namespace) -> None:
    # Cheap checks first, before the model is loaded.
    if os.path.splitext(args.output)[1].lower() not in _PAGES + _PICTURES:
        raise ValueError(f"{args.output}: the name must end in {', '.join(_PAGES + _PICTURES)}")
    if args.top_k < 1:
        raise ValueError(f"--top-k must be 1 or more, not {args.top_k}")
    if not os.path.isfile(args.query):
        raise FileNotFoundError(f"{args.query}: no such query image")
    images = [name for name in find_images(args.gallery) if not _is_same(name, args.query)]
    if not images:
        raise ValueError(f"{args.gallery}: holds no image to search")
    # The table of training identities takes no part in a search.
    fixed = ["MODEL.OIM.ENABLED", "False", "MODEL.OIM.NUM_IDS", "1"]
    import_modules(args.imports)
    cfg = build_config(args.config_file, [*args.opts, *fixed], eval_only=True)
    searcher = PersonSearcher(cfg, args.weights or cfg.MODEL.WEIGHTS)
    query = searcher.find_query(args.query, args.box)
    source = "the given box" if query.score is None else f"detected, score {query.score:.2f}"
    print(f"searching for the person at {_text(query.box)} of {query.image} ({source})")
    outcome = searcher.search(query, images, args.top_k)
    _report(args, query, outcome)


class PersonSearcher:
    """Finds people in picture files and compares them with a wanted one."""

    def __init__(self, cfg: CfgNode, weights: str):
        """
        Args:
            cfg: of a network for inference, see :func:`kd_search.engine.build_config`.
            weights: checkpoint with all of its weights.

        Raises:
            FileNotFoundError, ValueError: the weights are missing, corrupt, or of another network.
        """
        if not weights:
            raise ValueError("no weights: give --weights FILE or MODEL.WEIGHTS")
        self._model = build_model(cfg).eval()
        load_trained(self._model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE)
        self._mapper = PersonSearchDatasetMapper(cfg, is_train=False)
        self._score_thresh = cfg.TEST.PERSON_SEARCH.SCORE_THRESH

    def find_query(self, image: str, box: Optional[list[float]] = None) -> Query:
        """Embed the wanted person: in ``box`` (XYXY, pixels), or the detection of highest score.

        Raises:
            ImageError: the picture cannot be read.
            ValueError: the box is empty or lies outside, or no person was detected.
        """
        if box is None:
            boxes, scores, embeddings = self._detect({"file_name": image, "image_id": image})
            if not len(scores):
                raise ValueError(
                    f"{image}: no person was found with a score of {self._score_thresh:g} or more: "
                    "mark the person with --box"
                )
            best = int(scores.argmax())
            return Query(image, boxes[best].tolist(), float(scores[best]), embeddings[best])
        queries = [{"query_id": 0, "bbox": box}]
        sample = self._mapper({"file_name": image, "image_id": image, "queries": queries})
        x0, y0, x1, y1 = box
        width, height = sample["width"], sample["height"]
        if not (max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height)):
            raise ValueError(
                f"{image}: --box {_text(box)} marks nothing in this picture of {width} x {height}: "
                "give its left, top, right and bottom in pixels"
            )
        with torch.no_grad():
            (embedding,) = self._model([sample])[0]["query_embeddings"].cpu().float().numpy()
        return Query(image, list(box), None, _finite(embedding, image))

    def search(self, query: Query, images: list[str], top_k: int) -> Outcome:
        """Rank pictures by their person most similar to the wanted one; shows its progress.

        A person is in a picture only once: one hit of each is enough.
        """
        best: list[Hit] = []
        outcome = Outcome([])
        for order, image in enumerate(tqdm(images, desc="searching", unit="image")):
            try:
                boxes, scores, embeddings = self._detect({"file_name": image, "image_id": image})
            except ImageError as error:
                outcome.unreadable.append(str(error))
                continue
            outcome.searched += 1
            if not len(scores):
                outcome.empty += 1
                continue
            similarity = embeddings @ query.embedding
            i = int(similarity.argmax())
            hit = Hit(float(similarity[i]), -order, image, boxes[i].tolist(), float(scores[i]))
            if len(best) < top_k:
                heapq.heappush(best, hit)
            else:
                heapq.heappushpop(best, hit)
        if not outcome.searched:
            raise ValueError(f"no image could be read; the first: {outcome.unreadable[0]}")
        outcome.hits = sorted(best, reverse=True)
        return outcome

    def _detect(self, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (N, 4), scores (N,) and embeddings (N, D) above the score threshold."""
        with torch.no_grad():
            found = self._model([self._mapper(record)])[0]["instances"].to("cpu")
        found = found[found.scores >= self._score_thresh]
        embeddings = _finite(found.pred_embeddings.float().numpy(), record["file_name"])
        return found.pred_boxes.tensor.numpy(), found.scores.numpy(), embeddings


def find_images(folder: str) -> list[str]:
    """Image files of a folder and its subfolders by their names, sorted; hidden ones left out."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such gallery folder")
    return sorted(_walk(folder))


def _is_same(image: str, other: str) -> bool:
    try:
        return os.path.samefile(image, other)
    except OSError:  # a broken link, reported with the unreadable files
        return False


def _walk(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _IMAGES:
                yield os.path.join(root, name)


def _report(args: argparse.Namespace, query: Query, outcome: Outcome) -> None:
    for rank, hit in enumerate(outcome.hits, 1):
        print(f"{rank:4d}  similarity {hit.similarity:6.3f}  score {hit.score:.2f}  ", end="")
        print(f"{hit.image}  box {_text(hit.box)}")
    facts = [
        f"{outcome.searched} images searched, {outcome.empty} of them without people, "
        f"{len(outcome.unreadable)} unreadable."
    ]
    print(facts[0])
    for message in outcome.unreadable[:_NAMED]:
        print(f"skipped: {message}", file=sys.stderr)
    if len(outcome.unreadable) > _NAMED:
        print(f"skipped: {len(outcome.unreadable) - _NAMED} more", file=sys.stderr)
    if query.score is None:
        origin = [("as marked", INK)]
        facts.append("The wanted person was marked with a box.")
    else:
        origin = [("detected", INK), (f"score {query.score:.2f}", FAINT_INK)]
        facts.append("No box was given: the wanted person is the detection with the highest score.")
    name = (os.path.basename(query.image), FAINT_INK)
    tile = Tile("wanted", _read(query.image), query.box, lines=[*origin, name], ground=PANEL)
    hits = [_tile(rank, hit, args.gallery) for rank, hit in enumerate(outcome.hits, 1)]
    json_file = os.path.splitext(args.output)[0] + ".json"
    write_file(json_file, _json(query, outcome).encode("utf-8"))
    if args.output.lower().endswith(_PAGES):
        write_own_search_page(args.output, "Search for a person", tile, hits, facts)
    else:
        write_picture(args.output, draw_own_search(tile, hits))
    print(f"wrote {args.output} and {json_file}")


def _tile(rank: int, hit: Hit, gallery: str) -> Tile:
    lines = [
        (f"similarity {hit.similarity:.3f}", INK),
        (f"score {hit.score:.2f}", FAINT_INK),
        (os.path.relpath(hit.image, gallery), FAINT_INK),
    ]
    return Tile(f"rank {rank}", _read(hit.image), hit.box, lines=lines)


def _read(image: str) -> Optional[np.ndarray]:
    try:
        # It was read before, with the limit of the config.
        return read_image(image, "RGB", max_pixels=sys.maxsize)
    except ImageError:
        return None


def _json(query: Query, outcome: Outcome) -> str:
    document = {
        "query": {"image": query.image, "box": query.box, "score": query.score},
        "results": [
            {"image": h.image, "box": h.box, "score": h.score, "similarity": h.similarity}
            for h in outcome.hits
        ],
        "images_searched": outcome.searched,
        "images_without_people": outcome.empty,
        "unreadable": outcome.unreadable,
    }
    return json.dumps(document, indent=1, allow_nan=False)


def _finite(embeddings: np.ndarray, image: str) -> np.ndarray:
    if not np.isfinite(embeddings).all():
        raise ValueError(f"{image}: the network's embeddings are not finite: are the weights bad?")
    return embeddings


def _text(box: list[float]) -> str:
    return " ".join(f"{v:.0f}" for v in box)


if __name__ == "__main__":
    sys.exit(main())
