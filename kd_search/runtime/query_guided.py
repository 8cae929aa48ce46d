"""Query-guided networks in onnxruntime: they compare a picture with that of a query."""

from typing import Any, NamedTuple

import numpy as np

from kd_search.runtime.pictures import Picture, network_input, read_picture
from kd_search.runtime.searcher import _Model, in_input, in_picture


class Query(NamedTuple):
    """A wanted person, as input of the network."""

    #: (3, H, W) uint8.
    image: np.ndarray
    #: (1, 4) float32 XYXY in pixels of it.
    box: np.ndarray


class ComparedPeople(NamedTuple):
    """People of a picture, highest score first, and their similarity to a query."""

    #: (N, 4) float32, XYXY in pixels of the upright picture; N may be 0.
    boxes: np.ndarray
    #: (N,) float32 in [0, 1].
    scores: np.ndarray
    #: (N, D) float32 of length one. They depend on the query.
    embeddings: np.ndarray
    #: (N,) float32: what to rank by. Not on the scale of other networks, nor always a cosine.
    similarities: np.ndarray
    #: (D,) float32 of the query, which may depend on the picture.
    query_embedding: np.ndarray


class QueryGuidedSearcher(_Model):
    """Finds people with the help of the picture of a query, and compares them with it.

    Every pair of query and picture is a run of the network: for a shortlist, such as the best
    pictures of a :class:`PersonSearcher`. Methods may be called from several threads at once.
    """

    network = "query_guided"
    _first_outputs = (
        *("boxes", "scores", "embeddings", "similarities", "valid"),
        "query_embeddings",
    )

    def query(self, picture: Picture, box: Any) -> Query:
        """The person in a box of a picture.

        Args:
            picture: file, bytes of a file, or (H, W, 3) uint8 RGB pixels.
            box: XYXY in pixels of the upright picture.

        Raises:
            ImageError: the picture cannot be read; one line.
            ValueError: the box is not four numbers, or has no area in the picture.
        """
        given = np.asarray(box, np.float64).reshape(1, 4)
        rgb = read_picture(picture, self.manifest["max_pixels"])
        image, size = network_input(rgb, self.manifest)
        return Query(image, in_input(given, size, rgb))

    def search(self, query: Query, picture: Picture) -> ComparedPeople:
        """Detect people and compare them with a query.

        Returns:
            Those above the ``score_threshold`` of the manifest.

        Raises:
            ImageError: the picture cannot be read; one line.
        """
        rgb = read_picture(picture, self.manifest["max_pixels"])
        image, size = network_input(rgb, self.manifest)
        inputs = {
            "image": image,
            "size": np.array(size, np.int64),
            "query_image": query.image,
            "query_box": query.box,
        }
        outputs = self._first_outputs
        boxes, scores, embeddings, similarities, valid, wanted = self._session(outputs).run(
            outputs, inputs
        )
        boxes, keep = in_picture(boxes[valid], size, rgb)
        scores, embeddings, similarities = (
            field[valid][keep] for field in (scores, embeddings, similarities)
        )
        return ComparedPeople(boxes[keep], scores, embeddings, similarities, wanted[0])
