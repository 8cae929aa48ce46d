"""Sizes of image files, for annotation formats that do not state them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from kd_search.data.io.image import ImageError, impossible_name

#: Orientation tag of EXIF; its values 5 to 8 turn the image by a quarter.
_ORIENTATION = 0x0112
#: Headers are small: what takes time is waiting for the disk or the network.
_THREADS = 8


def read_image_size(path: str) -> tuple[int, int]:
    """Width and height of an image as :func:`~kd_search.data.io.read_image` returns it, in pixels.

    Reads the header alone and remembers it for as long as the file does not change.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    try:
        status = os.stat(PathManager.get_local_path(path))
    except OSError:
        raise ImageError(f"{path}: no such image file") from None
    except ValueError as error:
        raise impossible_name(path, error) from None
    return _read_header(path, status.st_mtime_ns, status.st_size)


def read_image_sizes(paths: Sequence[str], what: str) -> list[tuple[int, int]]:
    """Sizes of many images, with a progress bar where standard error is a terminal.

    Args:
        paths: image files.
        what: file or list that names them, for messages.

    Raises:
        FileNotFoundError: images are missing; the line says how many and names the first one.
        ImageError: an image has no readable header; the line names it.
    """
    missing, sizes = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(_size_or_error, paths)
        for path, size in zip(
            paths, tqdm(found, desc="reading image sizes", total=len(paths), disable=None)
        ):
            if isinstance(size, ImageError):
                if os.path.exists(PathManager.get_local_path(path)):
                    raise size
                missing.append(path)
            sizes.append(size)
    if missing:
        raise FileNotFoundError(
            f"{what}: {len(missing)} of the {len(paths)} images that it names do not exist; the "
            f"first is {missing[0]}"
        )
    return sizes


def _size_or_error(path: str):
    try:
        return read_image_size(path)
    except ImageError as error:
        return error


@cache
def _read_header(path: str, _changed: int, _bytes: int) -> tuple[int, int]:
    try:
        with PathManager.open(path, "rb") as stream, Image.open(stream) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    # Pillow raises nearly anything on bad data.
    except Exception as error:
        raise ImageError(f"{path}: not an image file ({type(error).__name__})") from None
    return (height, width) if turned else (width, height)
