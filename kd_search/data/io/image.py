"""Reading of image files and of their sizes, with errors that name the file."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Union

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageFile
from tqdm import tqdm

#: Orientation tag of EXIF.
_ORIENTATION = 0x0112
#: Reading headers takes little time but for waiting for the disk or the network.
_THREADS = 8


class ImageError(ValueError):
    """An image is missing, unreadable or refused; the message names the file."""


def read_image(path: str, format: str = "BGR", max_pixels: int = 50_000_000) -> np.ndarray:
    """Read an image as a viewer shows it: rotated by its EXIF tag, 8 bits, three channels.

    Gray and palette images become color images; alpha is dropped, as in Detectron2, so that the
    colors under transparent pixels stay; 16-bit gray is scaled to 8 bits; CMYK is converted; of
    several frames the first is read. Pillow decodes, because OpenCV silently fills the missing part
    of a truncated file with gray.

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
    if format not in ("BGR", "RGB"):
        raise ValueError(f"image format {format!r} is neither 'BGR' nor 'RGB'")
    try:
        with PathManager.open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file") from None
    except ValueError as error:
        raise invalid_name(path, error) from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not content:
        raise ImageError(f"{path}: the image file is empty")
    rgb = _decode(path, content, max_pixels)
    return np.ascontiguousarray(rgb[:, :, ::-1] if format == "BGR" else rgb)


def invalid_name(path: str, error: ValueError) -> ImageError:
    """Error for a file name with a NUL character or a lone surrogate, which is quoted."""
    return ImageError(f"{path!r}: no file can have such a name ({error})")


def refuse_large(path: str, size: tuple[int, int], max_pixels: int) -> None:
    """Check the width and height of an image.

    Raises:
        ImageError: it has more than ``max_pixels`` pixels.
    """
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} pixels are more than the allowed {max_pixels} "
            "(INPUT.MAX_IMAGE_PIXELS)"
        )


def _decode(path: str, content: bytes, max_pixels: int) -> np.ndarray:
    try:
        with _no_truncated_images(), Image.open(io.BytesIO(content)) as image:
            refuse_large(path, image.size, max_pixels)
            image.load()
            return _upright(_to_rgb(path, image), image)
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path}: not an image file") from None
    # Pillow's decoders raise many types (OSError, SyntaxError, struct.error, ...) on bad data.
    except Exception as error:
        raise ImageError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from None


def _to_rgb(path: str, image: Image.Image) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{path}: 32-bit images have no 8-bit equivalent")
        gray = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"{path}: floating point images have no 8-bit equivalent")
    if image.mode in ("P", "PA", "La", "RGBa"):
        # Straight to RGB, Pillow warns of palettes with transparency and refuses premultiplied.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return np.array(image.convert("RGB"))


def _upright(rgb: np.ndarray, image: Image.Image) -> np.ndarray:
    """Undo the rotation of the EXIF orientation tag (values 1 to 8 of the standard)."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels are usable without a valid EXIF block
        return rgb
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    mirrored = rgb[:, ::-1] if orientation in (2, 4, 5, 7) else rgb
    return np.rot90(mirrored, turns)


@contextlib.contextmanager
def _no_truncated_images() -> Iterator[None]:
    # Other libraries enable them for the whole process; truncated files would then decode to gray.
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


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
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    # Pillow raises many types on bad data.
    except Exception as error:
        raise ImageError(f"{path}: not an image file ({type(error).__name__})") from None
    return (height, width) if turned else (width, height)
