"""From a picture to the input of a network, as in training."""

import os
from pathlib import Path
from typing import Any, Union

import numpy as np
from PIL import Image

from kd_search.utils.pictures import ImageError, decode_image, refuse_large

#: A file, its bytes, or (H, W, 3) uint8 RGB pixels of an upright picture.
Picture = Union[str, "os.PathLike[str]", bytes, np.ndarray]
#: Endings of the files of a folder that are taken for pictures.
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_picture(picture: Picture, max_pixels: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of a picture, upright.

    Raises:
        ImageError: it cannot be read, or has more than ``max_pixels`` pixels; one line.
    """
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ImageError(
                f"pixels must be (H, W, 3) uint8 RGB, got {tuple(picture.shape)} {picture.dtype}"
            )
        if 0 in picture.shape:
            raise ImageError("the picture has no pixels")
        refuse_large("picture", (picture.shape[1], picture.shape[0]), max_pixels, "max_pixels")
        return picture
    if isinstance(picture, bytes):
        return decode_image("picture", picture, "RGB", max_pixels, "max_pixels")
    name = os.fspath(picture)
    try:
        content = Path(name).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such image file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise ImageError(f"{name!r}: no file can have such a name ({error})") from None
    return decode_image(name, content, "RGB", max_pixels, "max_pixels")


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width of a network input: as Detectron2's ``ResizeShortestEdge``.

    Args:
        height, width: of the picture.
        min_size: of the shorter side; 0 keeps the size.
        max_size: largest longer side.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    new_height, new_width = (
        (float(min_size), scale * width) if height < width else (scale * height, float(min_size))
    )
    longer = max(new_height, new_width)
    if longer > max_size:
        scale = max_size / longer
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def network_input(rgb: np.ndarray, manifest: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """Resize and pad a picture.

    Args:
        rgb: (H, W, 3) uint8.
        manifest: of a person search network.

    Returns:
        (3, H', W') uint8 in the channel order of the network, padded with 0 at the right and at the
        bottom to multiples of ``size_divisibility``; and height and width without the padding.

    Raises:
        ImageError: the picture is so narrow that nothing would be left of it.
    """
    height, width = rgb.shape[:2]
    size = resized_size(height, width, manifest["min_size"], manifest["max_size"])
    if min(size) < 1:
        raise ImageError(f"a picture of {width} x {height} pixels is too narrow for the network")
    if size != (height, width):
        image = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        rgb = np.asarray(image)
    step = manifest["size_divisibility"]
    padded = np.zeros((3, -(-size[0] // step) * step, -(-size[1] // step) * step), np.uint8)
    channels = rgb[:, :, ::-1] if manifest["input_format"] == "BGR" else rgb
    padded[:, : size[0], : size[1]] = channels.transpose(2, 0, 1)
    return padded, size


def crop_input(rgb: np.ndarray, box: Any, manifest: dict[str, Any]) -> np.ndarray:
    """(3, h, w) uint8 crop of a picture as a re-ID network takes it.

    Args:
        rgb: (H, W, 3) uint8.
        box: XYXY in pixels, with fractions; ``None`` for the whole picture.
        manifest: of a re-ID network.

    Raises:
        ImageError: the box lies outside of the picture.
    """
    height, width = rgb.shape[:2]
    inner = None
    if box is not None:
        left, top, right, bottom = (float(value) for value in box)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if not (right > left and bottom > top):
            raise ImageError(f"the box {[float(v) for v in box]} lies outside of the picture")
        x, y = int(left), int(top)
        rgb = rgb[y : int(np.ceil(bottom)), x : int(np.ceil(right))]
        inner = (left - x, top - y, right - x, bottom - y)
    new_height, new_width = manifest["crop_size"]
    crop = Image.fromarray(np.ascontiguousarray(rgb)).resize(
        (new_width, new_height), Image.Resampling.BICUBIC, box=inner
    )
    channels = np.asarray(crop)
    if manifest["input_format"] == "BGR":
        channels = channels[:, :, ::-1]
    return np.ascontiguousarray(channels.transpose(2, 0, 1))


def find_pictures(places: list[str]) -> list[str]:
    """Files of a list of files and folders; folders with their subfolders, sorted.

    Raises:
        ImageError: a place does not exist, or a folder has no pictures.
    """
    files: list[str] = []
    for place in places:
        if not os.path.isdir(place):
            if not os.path.exists(place):
                raise ImageError(f"{place}: no such file or folder")
            files.append(place)
            continue
        found = [str(p) for p in sorted(Path(place).rglob("*")) if p.suffix.lower() in ENDINGS]
        if not found:
            raise ImageError(f"{place}: the folder has no pictures ({', '.join(ENDINGS)})")
        files += found
    return files
