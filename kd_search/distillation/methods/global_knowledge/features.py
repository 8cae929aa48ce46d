"""Features of student and teacher in the candidate boxes of prototypes.

The teacher's are computed once, the student's in every generation of prototypes, as in the released
code of Tang et al. (ECCV 2022; there the teacher's are kept on the GPU in half precision, here on
the CPU, scaled by row). Batches have one image, so that features depend neither on padding nor on
the number of ranks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import torch
from detectron2.utils import comm
from torch import nn

from kd_search.data.training_records import POSITION_KEY
from kd_search.distillation.methods.global_knowledge.bank import PrototypeBank
from kd_search.distillation.methods.global_knowledge.candidates import (
    CandidateBoxes,
    CandidateImage,
    candidates_of,
    confident_boxes,
)
from kd_search.distillation.methods.global_knowledge.match import pool_regions
from kd_search.distillation.teacher import FrozenTeacher
from kd_search.outputs import Part


class HalfRows(NamedTuple):
    """Features in half precision, each row in units of its largest number."""

    #: (N, D) float16 and (N, 1) float32.
    rows: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def pack(cls, features: torch.Tensor) -> "HalfRows":
        """From (N, D) float32; without the scale, features above 65504 would become infinite."""
        scale = features.abs().amax(dim=1, keepdim=True)
        scale = scale.masked_fill(scale == 0, 1.0)
        return cls((features / scale).half(), scale)

    def unpack(self) -> torch.Tensor:
        """(N, D) float32."""
        return self.rows.float() * self.scale


@dataclass
class Candidates:
    """Candidates with their features, image after image; N of them, on the CPU."""

    #: (N,) int64, position of the image in the list of training images.
    images: torch.Tensor
    #: N boxes of these images.
    found: CandidateBoxes
    #: Per level (N, D_s) and (N, D_t), not of unit length.
    student: list[torch.Tensor]
    teacher: list[HalfRows]

    def where(self, chosen: torch.Tensor) -> "Candidates":
        """The candidates of a mask or of indices."""
        return Candidates(
            self.images[chosen],
            self.found.where(chosen),
            [level[chosen] for level in self.student],
            [HalfRows(*(part[chosen] for part in level)) for level in self.teacher],
        )


def join(parts: list[Candidates]) -> Candidates:
    """Concatenate one or more sets of candidates."""
    levels = range(len(parts[0].student))
    return Candidates(
        torch.cat([part.images for part in parts]),
        CandidateBoxes(*(torch.cat(column) for column in zip(*(part.found for part in parts)))),
        [torch.cat([part.student[i] for part in parts]) for i in levels],
        [HalfRows(*map(torch.cat, zip(*(part.teacher[i] for part in parts)))) for i in levels],
    )


def gather_candidates(own: Candidates) -> Optional[Candidates]:
    """Candidates of all ranks on rank 0, ordered by image, ``None`` elsewhere; a collective call.

    The result does not depend on the distribution of images over ranks.
    """
    parts = comm.gather(own)
    if not parts:
        return None
    candidates = join(parts)
    return candidates.where(candidates.images.argsort(stable=True))


class CandidateFeatures:
    """Candidates of this rank's images, with the teacher's features kept between calls."""

    def __init__(
        self,
        student: nn.Module,
        teacher: FrozenTeacher,
        bank: PrototypeBank,
        images: Mapping[int, CandidateImage],
        *,
        min_size: float = 30.0,
        min_score: Optional[float] = None,
    ):
        """
        Args:
            student: has ``forward_teacher(batch, parts)``; the caller of :meth:`visit` sets it to
                evaluation mode.
            teacher: its network likewise.
            bank: its levels are pooled.
            images: of :func:`choose_images`.
            min_size: see there.
            min_score: of :func:`confident_boxes`; ``None`` for annotated boxes alone.
        """
        self._student: Any = student
        self._teacher = teacher
        self._bank = bank
        self._images = images
        self._min_size = min_size
        self._min_score = min_score
        #: Boxes and the teacher's features, by position of the image.
        self._kept: dict[int, tuple[CandidateBoxes, list[HalfRows]]] = {}

    @torch.no_grad()
    def visit(
        self,
        batches: Iterable[list[dict[str, Any]]],
        step: Callable[[int], None] = lambda images: None,
    ) -> Candidates:
        """Candidates of all images, image after image.

        Args:
            batches: one image each, of :func:`kd_search.data.training_records.build_record_loader`.
            step: called with the number of images after each batch.
        """
        parts = [self._nothing()]
        for batch in batches:
            (sample,) = batch
            position = sample[POSITION_KEY]
            inputs = [{key: sample[key] for key in ("image", "height", "width")}]
            if position not in self._kept:
                self._kept[position] = self._first_visit(position, inputs)
            found, teacher = self._kept[position]
            if len(found.boxes):
                images = torch.full_like(found.numbers, position)
                student = self._pool(self._student, inputs, found.boxes)
                parts.append(Candidates(images, found, student, teacher))
            step(len(batch))
        return join(parts)

    def _first_visit(
        self, position: int, inputs: list[dict[str, Any]]
    ) -> tuple[CandidateBoxes, list[HalfRows]]:
        confident = None
        if self._min_score is not None:
            confident = confident_boxes(self._teacher, inputs, self._min_score)
        found = candidates_of(
            self._images[position],
            inputs[0]["width"],
            inputs[0]["height"],
            min_size=self._min_size,
            confident=confident,
        )
        if not len(found.boxes):
            return found, []
        features = self._pool(self._teacher.model, self._teacher.inputs(inputs), found.boxes)
        return found, [HalfRows.pack(level) for level in features]

    def _pool(
        self, model: Any, inputs: list[dict[str, Any]], boxes: torch.Tensor
    ) -> list[torch.Tensor]:
        """Per level (n, D) features of boxes of the original image, on the CPU."""
        features = model.forward_teacher(inputs, frozenset({Part.FEATURES})).features
        maps = [features[name] for name in self._bank.names]
        height, width = inputs[0]["image"].shape[-2:]
        scale = [width / inputs[0]["width"], height / inputs[0]["height"]] * 2
        boxes = (boxes.double() * torch.tensor(scale, dtype=torch.float64)).float()
        device = maps[0].device
        index = torch.zeros(len(boxes), dtype=torch.int64, device=device)
        pooled = pool_regions(maps, self._bank.strides, boxes.to(device), index, self._bank.samples)
        return [level.cpu() for level in pooled]

    def _nothing(self) -> Candidates:
        numbers = torch.zeros(0, dtype=torch.int64)
        student, teacher = [], []
        for level in range(self._bank.num_levels):
            ours, theirs, _ = self._bank.prototypes(level)
            student.append(torch.zeros(0, ours.shape[1]))
            teacher.append(HalfRows.pack(torch.zeros(0, theirs.shape[1])))
        found = CandidateBoxes(numbers, torch.zeros(0, 4), numbers, numbers)
        return Candidates(numbers, found, student, teacher)
