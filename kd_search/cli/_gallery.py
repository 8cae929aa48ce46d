"""What the commands of galleries share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def load_searcher(model: str, threads: int | None = None, gallery: str | None = None) -> Any:
    """Load an exported network.

    Args:
        model: ONNX file.
        threads: of the network; ``None`` for all cores.
        gallery: if given, the network must be the one it was indexed with.

    Raises:
        GalleryError: it is another one.
        FileNotFoundError, ValueError: the file is missing or damaged.
        ImportError: onnxruntime is not installed.
    """
    try:
        from kd_search.runtime import PersonSearcher
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ImportError("onnxruntime is not installed: pip install onnxruntime") from None
    searcher = PersonSearcher.load(model, threads)
    if gallery is not None:
        from kd_search.gallery.manifest import read_manifest

        manifest = read_manifest(gallery)
        manifest.check_model(gallery, searcher.manifest["file_sha256"], model)
    return searcher


def printable(text: str) -> str:
    """Text with file names that any terminal can show."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_picture(image: str, max_pixels: int = sys.maxsize) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a file as viewers show it.

    Raises:
        ImageError: it cannot be read; names the file.
    """
    from kd_search.utils.pictures import ImageError, decode_image

    try:
        with open(image, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ImageError(f"{image}: cannot be read ({error.strerror or error})") from None
    return decode_image(image, content, "RGB", max_pixels, "max_pixels")
