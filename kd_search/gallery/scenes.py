"""The pictures behind the people of a gallery, read anew from their files."""

import os
import sys

import numpy as np

from kd_search.utils.pictures import ImageError, decode_image

from .results import Hit
from .video import is_video, read_frame


def read_picture(path: str, max_pixels: int = sys.maxsize) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a file as viewers show it.

    Raises:
        ImageError: it cannot be read; names the file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    return decode_image(path, content, "RGB", max_pixels, "max_pixels")


def read_scene(hit: Hit, max_pixels: int = sys.maxsize) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the picture or the frame of a video in which somebody was found.

    Raises:
        ImageError: it cannot be read, or has another size than when it was indexed, so that the
            box would frame something else; names the file.
    """
    if hit.second is not None and is_video(hit.path):
        scene = read_frame(hit.path, hit.second, max_pixels)
    else:
        scene = read_picture(hit.path, max_pixels)
    if scene.shape[:2] != (hit.height, hit.width):
        name = os.path.basename(hit.path)
        raise ImageError(f"{name}: has changed since it was indexed")
    return scene
