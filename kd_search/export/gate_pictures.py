"""Picture files on which an exported network is compared with the one that was trained."""

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class GatePicture(NamedTuple):
    """A file and boxes to embed in it, XYXY in pixels of the upright picture."""

    file: str
    boxes: list[list[float]]


def write_gate_pictures(folder: Path, min_size: int, seed: int = 0) -> list[GatePicture]:
    """Write at least 12 made pictures, of the kinds that importers get wrong.

    JPEG rotated by its EXIF tag, PNG with alpha, gray, 16-bit gray and palette, small, large, odd,
    long and nearly square sizes, a picture of nothing, and a crowd.

    Args:
        folder: to write to.
        min_size: shorter side of the network's inputs, the scale of the pictures.
        seed: of their content.
    """
    rng = np.random.default_rng(seed)
    side = max(min_size or 192, 64)
    scenes: dict[str, tuple[tuple[int, int], int, dict[str, Any]]] = {
        # Already of the network's size, larger by far, and smaller.
        "equal.png": ((side, side * 4 // 3), 3, {}),
        "large.jpg": ((2 * side + 31, 3 * side + 17), 6, {}),
        "small.png": ((side // 3 + 1, side // 2), 1, {}),
        "odd.png": ((side + 5, side + 3), 2, {}),
        "long.jpg": ((side // 2, 3 * side), 4, {}),
        "tall.jpg": ((3 * side, side // 2 + 1), 2, {}),
        "rotated.jpg": ((side, side * 3 // 2), 3, {"exif": 6}),
        "mirrored.jpg": ((side * 5 // 4, side), 2, {"exif": 5}),
        "alpha.png": ((side, side * 3 // 2), 3, {"mode": "RGBA"}),
        "gray.jpg": ((side, side * 3 // 2), 3, {"mode": "L"}),
        "gray16.png": ((side, side * 3 // 2), 3, {"mode": "I;16"}),
        "palette.png": ((side * 2, side * 2), 3, {"mode": "P"}),
        "crowd.jpg": ((side * 3 // 2, side * 5 // 2), 24, {}),
        "nobody.png": ((side, side * 4 // 3), 0, {}),
    }
    pictures: list[GatePicture] = []
    for name, (size, people, options) in scenes.items():
        pixels, boxes = made_scene(rng, size, people)
        (folder / name).write_bytes(encoded(pixels, name, **options))
        if "exif" in options:
            # Boxes are those of the stored pixels: take others of the upright picture.
            height, width = size[::-1]
            boxes = [[0.1 * width, 0.2 * height, 0.5 * width, 0.9 * height]]
        pictures.append(GatePicture(str(folder / name), boxes[: len(pictures) % 4]))
    return pictures


def made_scene(
    rng: np.random.Generator, size: tuple[int, int], people: int
) -> tuple[np.ndarray, list[list[float]]]:
    """(H, W, 3) uint8 pixels of clothed figures on a ground, and their boxes.

    Crude compared with :mod:`kd_search.synthetic`: they have to trigger a person detector, no
    more, and need nothing but NumPy.
    """
    height, width = size
    if people == 0:
        return np.full((height, width, 3), 114, np.uint8), []
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + b) + np.sin(y / c) for a, b, c in rng.uniform(5, 40, (3, 3))]
    pixels = 110 + 25 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3))
    boxes = []
    for _ in range(people):
        tall = height * rng.uniform(0.3, 0.7)
        wide = min(tall * rng.uniform(0.35, 0.5), width * 0.8)
        top, left = rng.uniform(0, height - tall), rng.uniform(0, width - wide)
        boxes.append([float(v) for v in (left, top, left + wide, top + tall)])
        _draw_figure(pixels, rng, left, top, wide, tall, x, y)
    return np.clip(pixels, 0, 255).astype(np.uint8), boxes


def _draw_figure(
    pixels: np.ndarray,
    rng: np.random.Generator,
    left: float,
    top: float,
    wide: float,
    tall: float,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    u, v = (x - left) / wide, (y - top) / tall
    skin, shirt, trousers = rng.uniform(20, 235, (3, 3))
    head = (u - 0.5) ** 2 / 0.03 + (v - 0.09) ** 2 / 0.008 < 1
    torso = (abs(u - 0.5) < 0.3) & (v > 0.18) & (v < 0.55)
    legs = (abs(abs(u - 0.5) - 0.15) < 0.1) & (v >= 0.55) & (v < 1)
    for part, color in ((head, skin), (torso, shirt), (legs, trousers)):
        pixels[part] = color
    pixels[torso & (np.sin(v * 60) > 0.6)] *= 0.7


def encoded(pixels: np.ndarray, name: str, mode: str = "RGB", exif: int = 1) -> bytes:
    """The bytes of a picture file.

    Args:
        pixels: (H, W, 3) uint8 RGB as stored.
        name: its ending is the kind of file.
        mode: of Pillow, or "I;16" for 16-bit gray.
        exif: orientation tag.
    """
    image = Image.fromarray(pixels)
    if mode == "RGBA":
        fade = np.linspace(0, 255, pixels.shape[1]).astype(np.uint8)
        image.putalpha(Image.fromarray(np.tile(fade, (pixels.shape[0], 1))))
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    options: dict[str, Any] = {}
    if exif != 1:
        tags = Image.Exif()
        tags[0x0112] = exif
        options["exif"] = tags
    if name.endswith(".jpg"):
        options |= {"quality": 92}
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if os.path.splitext(name)[1] == ".jpg" else "PNG", **options)
    return buffer.getvalue()
