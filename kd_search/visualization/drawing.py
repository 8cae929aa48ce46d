"""Boxes, ticks, crosses and text on RGB pictures."""

import base64
import functools
import io
import os
from collections.abc import Sequence
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kd_search.utils.files import atomic_write

Colour = tuple[int, int, int]
Box = Sequence[float]

#: A found box that is right, and one that is wrong. Never the only cue: ticks and crosses go along.
RIGHT: Colour = (22, 163, 74)
WRONG: Colour = (220, 38, 38)
#: The true place of the person, drawn dashed.
TRUTH: Colour = (250, 204, 21)
#: The query, and found boxes without ground truth.
QUERY: Colour = (37, 99, 235)

INK: Colour = (31, 41, 55)
FAINT_INK: Colour = (107, 114, 128)
PAPER: Colour = (255, 255, 255)
PANEL: Colour = (241, 243, 246)
_HALO: Colour = (17, 24, 39)


@functools.lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that ships with matplotlib, so that pictures look the same on every machine."""
    import matplotlib  # takes long, and pages without text on pictures do not need it

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def fit(image: np.ndarray, width: int, height: int) -> Image.Image:
    """The (H, W, 3) picture scaled, with its aspect ratio, to just fit into width x height."""
    picture = Image.fromarray(image)
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def crop(image: np.ndarray, box: Box) -> Optional[np.ndarray]:
    """The part of (H, W, 3) ``image`` in an XYXY box, or ``None`` where nothing of it is inside."""
    height, width = image.shape[:2]
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    return image[y0:y1, x0:x1] if x1 > x0 and y1 > y0 else None


def draw_box(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    colour: Colour,
    width: int,
    dashed: bool = False,
) -> None:
    """Outline an XYXY box, in pixels of the picture, over a dark halo for contrast."""
    x0, y0, x1, y1 = (round(v) for v in box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_HALO, width=width + 2)
    if not dashed:
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
        return
    dash = 3 * width
    for x in range(x0, x1 + 1, 2 * dash):
        end = min(x + dash, x1)
        draw.rectangle((x, y0, end, y0 + width - 1), fill=colour)
        draw.rectangle((x, y1 - width + 1, end, y1), fill=colour)
    for y in range(y0, y1 + 1, 2 * dash):
        end = min(y + dash, y1)
        draw.rectangle((x0, y, x0 + width - 1, end), fill=colour)
        draw.rectangle((x1 - width + 1, y, x1, end), fill=colour)


def draw_mark(draw: ImageDraw.ImageDraw, x: int, y: int, size: int, correct: bool) -> None:
    """A white tick on a green disc, or a white cross on a red square; (x, y) is the top left.

    Tick and cross, disc and square: distinct without colour.
    """
    shape = draw.ellipse if correct else draw.rectangle
    shape((x, y, x + size, y + size), fill=RIGHT if correct else WRONG)

    def stroke(*points: tuple[float, float]) -> None:
        scaled = [(x + u * size, y + v * size) for u, v in points]
        draw.line(scaled, fill=PAPER, width=max(2, size // 7), joint="curve")

    if correct:
        stroke((0.25, 0.53), (0.43, 0.72), (0.76, 0.31))
    else:
        stroke((0.27, 0.27), (0.73, 0.73))
        stroke((0.27, 0.73), (0.73, 0.27))


def png_bytes(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as a PNG file."""
    return _encode(image, "PNG", optimize=True)


def jpeg_bytes(image: np.ndarray, quality: int = 85) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG file with full colour resolution, so that outlines stay."""
    return _encode(image, "JPEG", quality=quality, subsampling=0, optimize=True)


def data_uri(content: bytes, kind: str) -> str:
    """A file's content as the address of an image; ``kind`` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def write_file(path: str, content: bytes) -> None:
    """Write a file, and its folder if absent; readers see the old one or the whole new one."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write(content)


def write_picture(path: str, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as a PNG file, or as a JPEG one if its name says so."""
    jpeg = path.lower().endswith((".jpg", ".jpeg"))
    write_file(path, jpeg_bytes(image) if jpeg else png_bytes(image))


def _encode(image: np.ndarray, kind: str, **options) -> bytes:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, kind, **options)
    return stream.getvalue()
