"""Boxes of people for student and re-ID teacher."""

from typing import Any

import torch

from kd_search.data.spatial_jitter import jitter_boxes
from kd_search.outputs import Crops

#: Rounding error of a box that was mapped to the network's input and back, pixels of the original
#: image: a box this close to its annotation equals it.
_ROUNDING = 0.05


class CropSampler:
    """Samples the annotated boxes of a batch and, with feature-level augmentation, a shifted copy
    of each.

    In DKD (Zhang et al., AAAI 2021) the re-ID teacher embeds no proposals: FSA shifts a box before
    region pooling, and the teacher's crop with it.
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

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> Crops:
        """
        Args:
            batched_inputs: training samples with ``original_image`` and ``to_original``.

        Returns:
            per image all annotated boxes, then their shifted copies.
        """
        boxes, original_boxes, annotations, ids, shifted = [], [], [], [], []
        for x in batched_inputs:
            people = x["instances"]
            given, matrix = people.gt_boxes.tensor, x["to_original"]
            original = _to_original(given, matrix)
            annotated = people.gt_original_boxes
            exact = (original - annotated).abs().amax(dim=1) < _ROUNDING
            copies = [given]
            originals = [torch.where(exact[:, None], annotated, original)]
            places = [torch.where(exact, people.gt_annotations, -1)]
            if self.shifts:
                copies.append(self._shift(given, people.image_size, matrix))
                originals.append(_to_original(copies[1], matrix))
                places.append(torch.full_like(places[0], -1))
            boxes.append(torch.cat(copies))
            original_boxes.append(torch.cat(originals))
            annotations.append(torch.cat(places))
            for number in range(len(copies)):
                ids.append(people.gt_person_ids)
                shifted.append(torch.full((len(given),), number > 0))
        return Crops(boxes, torch.cat(ids), torch.cat(shifted), original_boxes, annotations)

    def _shift(
        self, boxes: torch.Tensor, image_size: tuple[int, int], to_original: torch.Tensor
    ) -> torch.Tensor:
        # alpha is in pixels of the original image, boxes in pixels of the network's input.
        limit = self.limit / to_original[:, :2].abs().sum(dim=0)
        return jitter_boxes(
            boxes, image_size, input_size=self.input_size, padding=self.padding, limit=limit
        )


def is_mirrored(sample: dict[str, Any]) -> bool:
    """Whether a training sample shows its original image mirrored."""
    return bool(sample["to_original"][0, 0] < 0)


def _to_original(boxes: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Boxes of the network's input in pixels of the original image."""
    corners = (boxes.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]).reshape(-1, 2, 2)
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
