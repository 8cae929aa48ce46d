"""Which people a re-ID teacher is asked about, and where they are in the original images."""

import torch
from torch.nn import functional as F

from kd_search.data.spatial_jitter import jitter_boxes
from kd_search.structures import Crops


class CropSampler:
    """The annotated people of a batch and, with feature-level augmentation, each shifted once.

    Zhang et al. (AAAI 2021) give the re-ID teacher ground-truth boxes and their shifted copies,
    never proposals: FSA shifts a box before region pooling, and the teacher's crop with it.
    """

    def __init__(self, *, shifts: bool, input_size: tuple[int, int], padding: float, limit: float):
        """
        Args:
            shifts: add a shifted copy of every box.
            input_size: (H, W) of the teacher's crops.
            padding: dp, pixels of that input.
            limit: alpha, pixels of the original image.
        """
        self.shifts = shifts
        self.input_size = input_size
        self.padding = padding
        self.limit = limit

    def __call__(self, batched_inputs: list[dict]) -> Crops:
        """
        Args:
            batched_inputs: training samples with ``instances`` and ``to_original``.

        Returns:
            all boxes of an image where they were annotated, then all of them shifted.
        """
        boxes, ids, annotations, shifted = [], [], [], []
        for x in batched_inputs:
            people = x["instances"]
            given = people.gt_boxes.tensor
            copies = [given]
            if self.shifts:
                copies.append(self._shift(given, people.image_size, x["to_original"]))
            boxes.append(torch.cat(copies))
            for number in range(len(copies)):
                ids.append(people.gt_person_ids)
                annotations.append(torch.arange(len(given)))
                shifted.append(torch.full((len(given),), number > 0))
        return Crops(boxes, torch.cat(ids), torch.cat(annotations), torch.cat(shifted))

    def _shift(
        self, boxes: torch.Tensor, image_size: tuple[int, int], to_original: torch.Tensor
    ) -> torch.Tensor:
        # alpha counts pixels of the original image; boxes are in the network's input.
        limit = self.limit / to_original[:, :2].abs().sum(dim=0)
        return jitter_boxes(
            boxes, image_size, input_size=self.input_size, padding=self.padding, limit=limit
        )


def cut_crops(
    sample: dict, boxes: torch.Tensor, size: tuple[int, int], *, mirror: bool = True
) -> torch.Tensor:
    """People cut from the original image, where boxes of the transformed image show them.

    Args:
        sample: with ``original_image`` (3, H, W) and ``to_original`` (2, 3), see
            :class:`kd_search.data.PersonSearchDatasetMapper`.
        boxes: (B, 4) XYXY, pixels of the transformed image.
        size: (height, width) of a crop.
        mirror: mirror the crops where the transformed image is mirrored.

    Returns:
        (B, 3, height, width) float32, 0..255, channels as the original's. A box that reaches out
        of the image is cut at its border; one with nothing inside gives its nearest pixel.
    """
    image, matrix = sample["original_image"], sample["to_original"].to(boxes)
    corners = boxes.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]
    corners = corners.reshape(-1, 2, 2)
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    height, width = image.shape[1:]
    crops = []
    for (x0, y0), (x1, y1) in zip(low.floor().int().tolist(), high.ceil().int().tolist()):
        x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        x1, y1 = min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
        crop = image[None, :, y0:y1, x0:x1].float()
        crops.append(F.interpolate(crop, size, mode="bilinear", antialias=True))
    if not crops:
        return image.new_zeros((0, 3, *size), dtype=torch.float32)
    crops = torch.cat(crops)
    is_mirrored = matrix[0, 0] < 0
    return crops.flip(3) if mirror and is_mirrored else crops
