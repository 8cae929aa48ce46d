"""The folder of a generated data set: its files, its description, and whether it is there."""

import json
from pathlib import Path
from typing import Any, Callable, Optional, Union

import cv2
import numpy as np

#: Says what a folder holds: kind, version of the generator, seed and config.
DESCRIPTION_FILE = "dataset.json"


def read_description(root: Union[str, Path]) -> Optional[dict[str, Any]]:
    """``dataset.json`` of a data set, or None where ``root`` holds no (whole) one."""
    try:
        return json.loads(Path(root, DESCRIPTION_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def is_generated(
    root: Path,
    description: dict[str, Any],
    is_whole: Callable[[], bool],
    *,
    what: str,
    overwrite: bool,
) -> bool:
    """Whether ``root`` holds exactly the set that is asked for; False if it may be (over)written.

    Args:
        root: where the set belongs; may be absent.
        description: of the set; ``kind``, where it has one, tells the generators apart.
        is_whole: whether all files of the set are in ``root``.
        what: name of such sets in messages.
        overwrite: replace another set of the same generator.

    Raises:
        ValueError: ``root`` holds another set and ``overwrite`` is False, or something that this
            generator has not made.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    found = read_description(root)
    # As it will be read again: tuples become lists.
    wanted = json.loads(json.dumps(description))
    if not isinstance(found, dict) or not _same_generator(found, wanted):
        # Whatever this is, it was not made here: never remove it.
        raise ValueError(f"{root} exists and is no {what}: choose another folder")
    differences = [key for key in wanted if found[key] != wanted[key]]
    if not differences and is_whole():
        return True
    if overwrite:
        return False
    flaw = f"has another {' and '.join(differences)}" if differences else "lacks images"
    raise ValueError(
        f"the data set in {root} {flaw}: choose another folder, or overwrite it (--overwrite)"
    )


def _same_generator(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.get("kind") == wanted.get("kind") and wanted.keys() <= found.keys()


def write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    """Write an image.

    Args:
        path: its file.
        image: (H, W, 3) uint8, RGB.
        quality: of JPEG, 0 to 100.
    """
    ok, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError(f"could not encode {path.name}")
    path.write_bytes(encoded.tobytes())
