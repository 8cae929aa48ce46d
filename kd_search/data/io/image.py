"""Reading of image files and of their sizes, with errors that name the file."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Union

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from kd_search.utils.pictures import (
    ORIENTATION,
    ImageError,
    check_format,
    decode_image,
)

#: Reading headers takes little time but for waiting for the disk or the network.
_THREADS = 8


def read_image(path: str, format: str = "BGR", max_pixels: int = 50_000_000) -> np.ndarray:
    """Read an image as a viewer shows it: rotated by its EXIF tag, 8 bits, three channels.

    See :func:`kd_search.utils.pictures.decode_image` for the kinds of images.

    Args:
        path: file, by any path that Detectron2's PathManager opens.
        format: channel order of the result, "BGR" or "RGB".
        max_pixels: larger images are refused from their header, before decoding.

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        ImageError: the file is missing, empty, no image, truncated, too large, or of a kind without
            8-bit equivalent (floating point, 32-bit integers).
        ValueError: unknown ``format``.
    """
    check_format(format)
    try:
        with PathManager.open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file") from None
    except ValueError as error:
        raise invalid_name(path, error) from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    return decode_image(path, content, format, max_pixels)


def invalid_name(path: str, error: ValueError) -> ImageError:
    """Error for a file name with a NUL character or a lone surrogate, which is quoted."""
    return ImageError(f"{path!r}: no file can have such a name ({error})")


def read_image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels of an image as :func:`read_image` returns it.

    Only the header is read; the result is cached until the file changes.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    try:
        status = os.stat(PathManager.get_local_path(path))
    except OSError:
        raise ImageError(f"{path}: no such image file") from None
    except ValueError as error:
        raise invalid_name(path, error) from None
    return _read_header(path, status.st_mtime_ns, status.st_size)


def read_image_sizes(paths: Sequence[str], what: str) -> list[tuple[int, int]]:
    """Sizes of many images, with a progress bar where standard error is a terminal.

    Args:
        paths: image files.
        what: file or list that names them, for messages.

    Raises:
        FileNotFoundError: images are missing; the line has their number and the first one.
        ImageError: an image has no readable header; the line names it.
    """
    missing, sizes = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(_size_or_error, paths)
        for path, size in zip(
            paths, tqdm(found, desc="reading image sizes", total=len(paths), disable=None)
        ):
            if not isinstance(size, ImageError):
                sizes.append(size)
            elif os.path.exists(PathManager.get_local_path(path)):
                raise size
            else:
                missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"{what}: {len(missing)} of the {len(paths)} images that it names do not exist; the "
            f"first is {missing[0]}"
        )
    return sizes


def _size_or_error(path: str) -> Union[tuple[int, int], ImageError]:
    try:
        return read_image_size(path)
    except ImageError as error:
        return error


@cache
def _read_header(path: str, _changed: int, _bytes: int) -> tuple[int, int]:
    try:
        with PathManager.open(path, "rb") as stream, Image.open(stream) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    # Pillow raises many types on bad data.
    except Exception as error:
        raise ImageError(f"{path}: not an image file ({type(error).__name__})") from None
    return (height, width) if turned else (width, height)
