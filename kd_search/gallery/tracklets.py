"""Linking the detections of the frames of a video: the same person over several frames."""

from dataclasses import dataclass

import numpy as np

from .segments import PEOPLE

#: A detection continues a tracklet if the boxes overlap by that much (IoU), and the embeddings are
#: that similar. A tracklet that is cut in two gives two results, one that joins two people hides
#: both: the limits are strict. They are ours, not from a paper.
_OVERLAP, _SIMILARITY = 0.3, 0.5
#: Seconds after which a person who was not seen counts as gone.
_GONE = 2.0


@dataclass
class _Tracklet:
    total: np.ndarray
    box: np.ndarray
    best_score: float
    best_box: np.ndarray
    best_frame: int
    best_second: float
    first: float
    last: float
    frames: int = 1

    @property
    def mean(self) -> np.ndarray:
        return self.total / np.linalg.norm(self.total)


class Tracklets:
    """Tracklets of one video, frame after frame."""

    def __init__(self) -> None:
        self._open: list[_Tracklet] = []
        self._closed: list[_Tracklet] = []

    def add(
        self,
        frame: int,
        second: float,
        boxes: np.ndarray,
        scores: np.ndarray,
        embeddings: np.ndarray,
    ) -> None:
        """Link the detections of the next frame, most similar pairs first.

        Args:
            frame: its number.
            second: since the start of the video.
            boxes: (N, 4) XYXY.
            scores: (N,).
            embeddings: (N, D) of unit length.
        """
        gone = [tracklet for tracklet in self._open if second - tracklet.last > _GONE]
        self._closed += gone
        self._open = [tracklet for tracklet in self._open if second - tracklet.last <= _GONE]
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        embeddings = np.asarray(embeddings, np.float64)
        free = set(range(len(boxes)))
        if free and self._open:
            means = np.stack([tracklet.mean for tracklet in self._open])
            last = np.stack([tracklet.box for tracklet in self._open])
            similarity = means @ embeddings.T
            fits = (overlap(last, boxes) >= _OVERLAP) & (similarity >= _SIMILARITY)
            taken = set()
            for flat in np.argsort(-similarity, axis=None, kind="stable"):
                row, column = divmod(int(flat), len(boxes))
                if fits[row, column] and row not in taken and column in free:
                    taken.add(row)
                    free.discard(column)
                    self._continue(
                        self._open[row],
                        frame,
                        second,
                        boxes[column],
                        float(scores[column]),
                        embeddings[column],
                    )
        for index in sorted(free):
            box, score = boxes[index], float(scores[index])
            start = (box, score, box, frame, second, second, second)
            self._open.append(_Tracklet(embeddings[index].copy(), *start))

    def rows(self, embedding_dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) float32, the means of unit length, and (N,) of :data:`PEOPLE`."""
        found = sorted([*self._closed, *self._open], key=lambda t: (t.first, tuple(t.best_box)))
        people = np.zeros(len(found), PEOPLE)
        embeddings = np.zeros((len(found), embedding_dim), np.float32)
        for index, tracklet in enumerate(found):
            embeddings[index] = tracklet.mean
            people[index] = (
                tracklet.best_box,
                tracklet.best_score,
                tracklet.best_frame,
                tracklet.best_second,
                tracklet.first,
                tracklet.last,
                tracklet.frames,
                index,
            )
        return embeddings, people

    def _continue(
        self,
        tracklet: _Tracklet,
        frame: int,
        second: float,
        box: np.ndarray,
        score: float,
        embedding: np.ndarray,
    ) -> None:
        tracklet.total = tracklet.total + embedding
        tracklet.box, tracklet.last = box, second
        tracklet.frames += 1
        if score > tracklet.best_score:
            tracklet.best_score, tracklet.best_box = score, box
            tracklet.best_frame, tracklet.best_second = frame, second


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of XYXY boxes (N, 4) and (M, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), axis=1) for b in (boxes, others)]
    return both / np.maximum(areas[0][:, None] + areas[1][None, :] - both, 1e-9)
