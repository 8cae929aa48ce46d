"""Mapper of re-ID samples: from a frame to the crop that is the network's input."""

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from PIL import Image
from torchvision import transforms as T

from kd_search.data.io.image import ImageError, read_image
from kd_search.data.spatial_jitter import jitter_boxes


class CropMapper:
    """Reads a crop, or cuts it from its image, resizes it, and augments it in training.

    Training augmentations, in this order, are those of Luo et al. (CVPR workshops 2019) and of the
    code of VKD (ECCV 2020): horizontal flip, padding with black, random crop, random erasing. All
    randomness is drawn from torch's generator.

    With ``shift`` a crop that is cut from a larger image is not padded: its box moves over the
    image instead, as far as padding would move it (the image level of the spatial-invariant
    augmentation of Zhang et al., AAAI 2021; see :mod:`kd_search.data.spatial_jitter`).

    Args:
        is_train: augment.
        size: (height, width) of the result.
        image_format: "BGR" or "RGB".
        flip_prob: probability of a horizontal flip.
        pad: pixels of the resized crop on each side; 0 for none.
        erasing_prob, erasing_scale, erasing_ratio: of torchvision's ``RandomErasing``: probability,
            range of the share of the area, range of height divided by width.
        erasing_fill: color of the rectangle in ``image_format``, 0..255; usually the mean that the
            network subtracts.
        shift: (dp, alpha) in pixels of the result and of the image; ``None`` for none.
        max_image_pixels: larger images are refused, see :func:`read_image`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        size: Sequence[int],
        image_format: str = "BGR",
        flip_prob: float = 0.5,
        pad: int = 10,
        erasing_prob: float = 0.5,
        erasing_scale: Sequence[float] = (0.02, 0.4),
        erasing_ratio: Sequence[float] = (0.3, 3.3),
        erasing_fill: Sequence[float] = (0.0, 0.0, 0.0),
        shift: Optional[tuple[float, float]] = None,
        max_image_pixels: int = 50_000_000,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"REID_DATA.SIZE {list(size)} is not [height, width]")
        self.is_train = is_train
        self.size = (int(size[0]), int(size[1]))
        self.image_format = image_format
        self.max_image_pixels = max_image_pixels
        self.shift = shift if is_train else None
        self.mirror = T.RandomHorizontalFlip(flip_prob)
        self.move = T.Compose([T.Pad(int(pad)), T.RandomCrop(self.size)])
        self.erase = T.RandomErasing(
            p=erasing_prob,
            scale=tuple(erasing_scale),
            ratio=tuple(erasing_ratio),
            value=[float(round(color)) for color in erasing_fill],
        )
        # Consecutive samples of a test are often people of one scene.
        self._last: tuple[str, np.ndarray] = ("", np.zeros((0, 0, 3), np.uint8))

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        node = cfg.REID_DATA
        return {
            "is_train": is_train,
            "size": node.SIZE,
            "image_format": cfg.INPUT.FORMAT,
            "flip_prob": node.FLIP_PROB,
            "pad": node.PAD,
            "erasing_prob": node.ERASING_PROB,
            "erasing_scale": node.ERASING_SCALE,
            "erasing_ratio": node.ERASING_RATIO,
            "erasing_fill": cfg.MODEL.PIXEL_MEAN,
            "shift": (node.SIA.PADDING, node.SIA.LIMIT) if node.SIA.IMAGE_LEVEL else None,
            "max_image_pixels": cfg.INPUT.MAX_IMAGE_PIXELS,
        }

    def __call__(self, file_name: str, box: Optional[Sequence[float]] = None) -> torch.Tensor:
        """Read one crop.

        Args:
            file_name: image.
            box: XYXY, absolute pixels of the image after its EXIF rotation; ``None`` for all of it.

        Returns:
            (3, H, W) uint8, channels in ``image_format`` order.

        Raises:
            ImageError: the image cannot be read, or the box lies outside of it.
        """
        image = self._read(file_name, box is not None)
        if box is not None and self.shift is not None:
            padding, limit = self.shift
            moved = jitter_boxes(
                torch.tensor([list(box)], dtype=torch.float64),
                image.shape[:2],
                input_size=self.size,
                padding=padding,
                limit=torch.tensor(float(limit), dtype=torch.float64),
            )
            crop = self.mirror(self._cut(image, moved[0].tolist(), file_name))
        else:
            crop = self._cut(image, box, file_name)
            crop = self.move(self.mirror(crop)) if self.is_train else crop
        pixels = torch.from_numpy(np.array(crop).transpose(2, 0, 1).copy())
        return self.erase(pixels) if self.is_train else pixels

    def _read(self, file_name: str, is_scene: bool) -> np.ndarray:
        if not is_scene:
            return read_image(file_name, self.image_format, self.max_image_pixels)
        if self._last[0] != file_name:
            image = read_image(file_name, self.image_format, self.max_image_pixels)
            self._last = file_name, image
        return self._last[1]

    def _cut(
        self, image: np.ndarray, box: Optional[Sequence[float]], file_name: str
    ) -> Image.Image:
        """The box, with fractions of a pixel, resized (bicubic)."""
        height, width = image.shape[:2]
        inner = None
        if box is not None:
            x0, y0, x1, y1 = (float(value) for value in box)
            x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
            if not (x1 > x0 and y1 > y0):
                raise ImageError(f"{file_name}: the box {list(box)} lies outside of the image")
            left, top = int(x0), int(y0)
            image = image[top : int(np.ceil(y1)), left : int(np.ceil(x1))]
            inner = (x0 - left, y0 - top, x1 - left, y1 - top)
        crop = Image.fromarray(np.ascontiguousarray(image))
        height, width = self.size
        return crop.resize((width, height), Image.Resampling.BICUBIC, box=inner)
