"""Decoding of pictures from the bytes of a file, with Pillow and NumPy alone.

Training and the runtime of exported networks share it, so that both see the same pixels.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

#: Orientation tag of EXIF.
ORIENTATION = 0x0112


class ImageError(ValueError):
    """An image is missing, unreadable or refused; the message names the file."""


def decode_image(
    path: str,
    content: bytes,
    format: str = "BGR",
    max_pixels: int = 50_000_000,
    limit: str = "INPUT.MAX_IMAGE_PIXELS",
) -> np.ndarray:
    """Decode a picture as a viewer shows it: rotated by its EXIF tag, 8 bits, three channels.

    Gray and palette images become color images; alpha is dropped, as in Detectron2, so that the
    colors under transparent pixels stay; 16-bit gray is scaled to 8 bits; CMYK is converted; of
    several frames the first is read. Pillow decodes, because OpenCV silently fills the missing part
    of a truncated file with gray.

    Args:
        path: name of the picture, for messages.
        content: of the file.
        format: channel order of the result, "BGR" or "RGB".
        max_pixels: larger images are refused from their header, before decoding.
        limit: name of the setting of ``max_pixels``, for messages.

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        ImageError: the content is empty, no image, truncated, too large, or of a kind without 8-bit
            equivalent (floating point, 32-bit integers).
        ValueError: unknown ``format``.
    """
    check_format(format)
    if not content:
        raise ImageError(f"{path}: the image file is empty")
    rgb = _decode(path, content, max_pixels, limit)
    return np.ascontiguousarray(rgb[:, :, ::-1] if format == "BGR" else rgb)


def check_format(format: str) -> None:
    """Raise a ValueError unless a channel order is "BGR" or "RGB"."""
    if format not in ("BGR", "RGB"):
        raise ValueError(f"image format {format!r} is neither 'BGR' nor 'RGB'")


def refuse_large(
    path: str,
    size: tuple[int, int],
    max_pixels: int,
    limit: str = "INPUT.MAX_IMAGE_PIXELS",
) -> None:
    """Check the width and height of an image.

    Raises:
        ImageError: it has more than ``max_pixels`` pixels.
    """
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} pixels are more than the allowed {max_pixels} ({limit})"
        )


def _decode(path: str, content: bytes, max_pixels: int, limit: str) -> np.ndarray:
    try:
        with _no_truncated_images(), Image.open(io.BytesIO(content)) as image:
            refuse_large(path, image.size, max_pixels, limit)
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
        orientation = image.getexif().get(ORIENTATION, 1)
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
