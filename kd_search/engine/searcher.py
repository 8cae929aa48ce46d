"""Search for a person in picture files with the checkpoint of a training."""

import heapq
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tqdm import tqdm

import kd_search.modeling  # noqa: F401  registers the networks
from kd_search.checkpoint import load_trained
from kd_search.data import ImageError, PersonSearchDatasetMapper
from kd_search.engine.defaults import build_config
from kd_search.engine.finished_run import require_run

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
#: Overrides of a config: the table of training identities takes no part in a search.
WITHOUT_TABLE = ("MODEL.OIM.ENABLED", "False", "MODEL.OIM.NUM_IDS", "1")


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
    #: Pictures of the gallery that were left out: they are the query's own.
    left_out: list[str] = field(default_factory=list)


class CheckpointSearcher:
    """Finds people in picture files and compares them with a wanted one.

    Boxes are XYXY in pixels of the upright picture, as viewers show it. Embeddings have unit
    length: their dot product is the similarity.

    Example::

        searcher = CheckpointSearcher.load("output/student")
        query = searcher.find_query("street.jpg", box=[120, 40, 180, 220])
        outcome = searcher.search(query, "photos/", top_k=20)
    """

    def __init__(self, cfg: CfgNode, weights: str):
        """
        Args:
            cfg: of a network for inference, see :func:`kd_search.engine.build_config`.
            weights: checkpoint with all of its weights.

        Raises:
            FileNotFoundError, ValueError: the weights are missing, corrupt, or of another network.
        """
        self._model = build_model(cfg).eval()
        load_trained(self._model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE, for_inference=True)
        self._mapper = PersonSearchDatasetMapper(cfg, is_train=False)
        self._score_thresh = cfg.TEST.PERSON_SEARCH.SCORE_THRESH

    @classmethod
    def load(
        cls,
        run: Union[str, "os.PathLike[str]"],
        weights: Optional[str] = None,
        *,
        device: str = "cpu",
        opts: Sequence[str] = (),
    ) -> "CheckpointSearcher":
        """The searcher of a training; of a distilled one, with its student.

        Args:
            run: output folder of the training.
            weights: checkpoint; ``None`` for the final one.
            device: ``MODEL.DEVICE``.
            opts: more overrides KEY VALUE of its config.

        Raises:
            FileNotFoundError, ValueError: the folder has no config or weights, or they do not fit.
        """
        found = require_run(os.fspath(run))
        cfg = build_config(
            found.config_file,
            [*opts, "MODEL.DEVICE", device, *WITHOUT_TABLE],
            eval_only=True,
            paths_from=found.working_directory,
        )
        return cls(cfg, weights or found.weights)

    def detect(self, picture: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the people of a picture file above ``TEST.PERSON_SEARCH.SCORE_THRESH``.

        Returns:
            boxes (N, 4), scores (N,) and embeddings (N, D).

        Raises:
            ImageError: the picture cannot be read.
            ValueError: the embeddings are not finite.
        """
        with torch.no_grad():
            sample = self._mapper({"file_name": picture, "image_id": picture})
            found = self._model([sample])[0]["instances"].to("cpu")
        found = found[found.scores >= self._score_thresh]
        embeddings = _finite(found.pred_embeddings.float().numpy(), picture)
        return found.pred_boxes.tensor.numpy(), found.scores.numpy(), embeddings

    def embed(self, picture: str, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """Embed the people in boxes of a picture file; (N, D).

        Raises:
            ImageError: the picture cannot be read.
            ValueError: a box is empty or lies outside.
        """
        queries = [{"query_id": i, "bbox": list(box)} for i, box in enumerate(boxes)]
        sample: dict[str, Any] = self._mapper(
            {"file_name": picture, "image_id": picture, "queries": queries}
        )
        width, height = sample["width"], sample["height"]
        for x0, y0, x1, y1 in boxes:
            if not (max(x0, 0) < min(x1, width) and max(y0, 0) < min(y1, height)):
                raise ValueError(
                    f"{picture}: the box {box_text((x0, y0, x1, y1))} marks nothing in this "
                    f"picture of {width} x {height}: give its left, top, right and bottom in pixels"
                )
        with torch.no_grad():
            embeddings = self._model([sample])[0]["query_embeddings"].cpu().float().numpy()
        return _finite(embeddings, picture)

    def find_query(self, picture: str, box: Optional[Sequence[float]] = None) -> Query:
        """Embed the wanted person: in ``box``, or the detection of highest score.

        Raises:
            ImageError: the picture cannot be read.
            ValueError: the box is empty or lies outside, or no person was detected.
        """
        if box is not None:
            (embedding,) = self.embed(picture, [box])
            return Query(picture, list(box), None, embedding)
        boxes, scores, embeddings = self.detect(picture)
        if not len(scores):
            raise ValueError(
                f"{picture}: no person was found with a score of {self._score_thresh:g} or more: "
                "mark the person with a box"
            )
        best = int(scores.argmax())
        return Query(picture, boxes[best].tolist(), float(scores[best]), embeddings[best])

    def search(self, query: Query, gallery: Union[str, Sequence[str]], top_k: int = 20) -> Outcome:
        """Rank pictures by their person most similar to the wanted one; shows its progress.

        A person is in a picture only once: one hit of each is enough. The query's own picture is
        left out.

        Args:
            query: of :meth:`find_query`.
            gallery: a folder, searched with its subfolders, or picture files.
            top_k: number of hits.

        Raises:
            FileNotFoundError, ValueError: there is no such folder, or no picture to search.
        """
        images, left_out = gallery_images(gallery, query.image)
        best: list[Hit] = []
        outcome = Outcome([], left_out=left_out)
        for order, image in enumerate(tqdm(images, desc="searching", unit="image")):
            try:
                boxes, scores, embeddings = self.detect(image)
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


def gallery_images(
    gallery: Union[str, Sequence[str]], query: str = ""
) -> tuple[list[str], list[str]]:
    """Picture files of a gallery, and those that are left out because they are the query's.

    Args:
        gallery: a folder, read with its subfolders, or picture files.
        query: picture of the wanted person.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no picture to search.
    """
    images = find_images(gallery) if isinstance(gallery, str) else list(gallery)
    left_out = [image for image in images if _is_same(image, query)]
    images = [image for image in images if image not in left_out]
    if not images:
        where = gallery if isinstance(gallery, str) else "the gallery"
        but = " besides the query picture" if left_out else ""
        raise ValueError(f"{where}: holds no image to search{but}")
    return images, left_out


def find_images(folder: str) -> list[str]:
    """Image files of a folder and its subfolders by their names, sorted; hidden ones left out."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such gallery folder")
    return sorted(_walk(folder))


def box_text(box: Sequence[float]) -> str:
    """A box for messages."""
    return " ".join(f"{v:.0f}" for v in box)


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


def _finite(embeddings: np.ndarray, image: str) -> np.ndarray:
    if not np.isfinite(embeddings).all():
        raise ValueError(f"{image}: the network's embeddings are not finite: are the weights bad?")
    return embeddings
