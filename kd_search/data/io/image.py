"""Decodes image files, or refuses them by name."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageFile

#: Orientation tag of EXIF.
_ORIENTATION = 0x0112


class ImageError(ValueError):
    """An image is missing, unreadable or refused; the message names the file."""


def read_image(path: str, format: str = "BGR", max_pixels: int = 50_000_000) -> np.ndarray:
    """Read an image the way a viewer shows it: rotated by its EXIF tag, 8 bits, three channels.

    Grey and palette images become colour images; alpha is dropped, as Detectron2 does, so that the
    colours under transparent pixels stay; 16-bit grey is scaled to 8 bits; CMYK is converted; of
    several frames the first counts. Pillow decodes, because OpenCV fills the missing part of a
    torn file with grey in silence.

    Args:
        path: file, by any path that Detectron2's PathManager opens.
        format: channel order of the result, "BGR" or "RGB".
        max_pixels: refuse larger images from their header, before anything is decoded.

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        ImageError: the file is missing, empty, no image, torn, too large, or of a kind that has no
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
        raise impossible_name(path, error) from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not content:
        raise ImageError(f"{path}: the image file is empty")
    rgb = _decode(path, content, max_pixels)
    return np.ascontiguousarray(rgb[:, :, ::-1] if format == "BGR" else rgb)


def impossible_name(path: str, error: ValueError) -> ImageError:
    """What to raise where opening a file raised a ValueError: its name contains a NUL character, or
    half a character. Neither can be printed, so that it is quoted."""
    return ImageError(f"{path!r}: no file can have such a name ({error})")


def _decode(path: str, content: bytes, max_pixels: int) -> np.ndarray:
    try:
        with _whole_files_only(), Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{path}: {width} x {height} pixels are more than the allowed {max_pixels}"
                    " (INPUT.MAX_IMAGE_PIXELS)"
                )
            image.load()
            return _upright(_to_rgb(path, image), image)
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path}: not an image file") from None
    # Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error, ...) on bad data.
    except Exception as error:
        raise ImageError(f"{path}: cannot be decoded ({type(error).__name__}: {error})") from None


def _to_rgb(path: str, image: Image.Image) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{path}: 32-bit images have no 8-bit equivalent")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(f"{path}: floating point images have no 8-bit equivalent")
    if image.mode in ("P", "PA", "La", "RGBa"):
        # Straight to RGB, Pillow warns of palettes with transparency and refuses premultiplied.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return np.array(image.convert("RGB"))


def _upright(rgb: np.ndarray, image: Image.Image) -> np.ndarray:
    """Undo the rotation that the EXIF orientation tag states (values 1 to 8 of the standard)."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not spoil the picture
        return rgb
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    mirrored = rgb[:, ::-1] if orientation in (2, 4, 5, 7) else rgb
    return np.rot90(mirrored, turns)


@contextlib.contextmanager
def _whole_files_only() -> Iterator[None]:
    # Other libraries switch this on for the whole process; torn files would then decode to grey.
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
