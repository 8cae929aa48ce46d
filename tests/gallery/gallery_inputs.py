"""Small galleries for tests: files that do not exist, with embeddings of directions."""

import numpy as np

from kd_search.gallery import GalleryWriter, Manifest, NewFile
from kd_search.gallery.segments import PEOPLE

DIM = 8
MODEL = "ab" * 32


def manifest(**changes) -> Manifest:
    return Manifest(MODEL, "student.onnx", DIM, **changes)


def sha(number: int) -> str:
    return f"{number:064x}"


def embeddings(number: int, count: int) -> np.ndarray:
    """(count, DIM) float32 of unit length."""
    rows = np.random.default_rng([7, number]).normal(size=(count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def people(count: int, score: float = 0.9) -> np.ndarray:
    records = np.zeros(count, PEOPLE)
    records["person"] = np.arange(count)
    records["box"] = [[10 * i, 5, 10 * i + 8, 30] for i in range(count)] or np.zeros((0, 4))
    records["score"] = score - 0.1 * np.arange(count)
    records["frame"], records["frames"] = -1, 1
    return records


def new_file(number: int, count: int = 3, *, content: int = -1, **fields) -> NewFile:
    """A picture in the folder of its camera with ``count`` people."""
    camera = f"cam{number % 4}"
    values = {
        "path": f"/footage/{camera}/{number:04d}.jpg",
        "size": 1000 + number,
        "mtime_ns": number,
        "sha256": sha(number if content < 0 else content),
        "width": 640,
        "height": 480,
        "camera": camera,
        "time": 1000.0 + number,
        "embeddings": embeddings(number, count),
        "people": people(count),
    }
    return NewFile(**{**values, **fields})


def copy_of(number: int, path: str, **fields) -> NewFile:
    """A file with the content of another one."""
    return NewFile(path, 1000 + number, 1, sha(number), **fields)


def filled(folder, numbers=range(20), counts=(3, 0, 1, 4), per_commit: int = 10) -> None:
    """Write a gallery of pictures."""
    numbers = list(numbers)
    with GalleryWriter(folder, manifest()) as writer:
        for start in range(0, len(numbers), per_commit):
            writer.add(
                [new_file(n, counts[n % len(counts)]) for n in numbers[start : start + per_commit]]
            )
