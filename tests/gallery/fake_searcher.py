"""A network that finds coloured squares, and pictures with such squares."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.gallery.gallery_inputs import DIM, MODEL

SIDE = 20


def colour_of(person: int) -> tuple[int, int, int]:
    """RGB, never black."""
    return (person * 37 % 200 + 50, person * 91 % 251, person // 7 % 256)


def embedding_of(colour) -> np.ndarray:
    """(DIM,) float32 of unit length."""
    row = np.random.default_rng([int(value) for value in colour]).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


def picture(persons=(), width: int = 5 * SIDE, height: int = 40) -> np.ndarray:
    """(height, width, 3) uint8 with a square for each person."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for i, person in enumerate(persons):
        pixels[:SIDE, i * SIDE : (i + 1) * SIDE] = colour_of(person)
    return pixels


def save(path: Path, persons=(), height: int = 40) -> str:
    """Write a picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(persons, height=height)).save(path)
    return str(path)


class FakeSearcher:
    """As :class:`kd_search.runtime.PersonSearcher`."""

    def __init__(self, sha256: str = MODEL, seconds: float = 0.0):
        self.manifest = {
            "file": "student.onnx",
            "file_sha256": sha256,
            "embedding_dim": DIM,
            "max_pixels": 1_000_000,
            "search_score_threshold": 0.5,
            "calibration": None,
        }
        self.seen = 0
        self._seconds = seconds

    def detect(self, rgb):
        assert rgb.dtype == np.uint8 and rgb.shape[2] == 3
        time.sleep(self._seconds)
        self.seen += 1
        places = [x for x in range(0, rgb.shape[1], SIDE) if rgb[0, x].any()]
        boxes = np.array([[x, 0, x + SIDE, SIDE] for x in places], np.float32).reshape(-1, 4)
        # The last square is below the threshold if it is in the fifth place.
        scores = np.array([0.9 if x < 4 * SIDE else 0.3 for x in places], np.float32)
        embeddings = [embedding_of(rgb[0, x]) for x in places]
        return boxes, scores, np.array(embeddings, np.float32).reshape(-1, DIM)

    def embed(self, rgb, boxes):
        return np.array([embedding_of(rgb[int(y), int(x)]) for x, y, *_ in boxes], np.float32)
