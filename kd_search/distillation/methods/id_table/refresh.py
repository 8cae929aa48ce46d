"""Recomputation of the rows of a distilled ID table during training."""

from typing import Optional, Union

import torch
from detectron2.config import CfgNode
from torch import nn

from kd_search.config.ranges import check_choice

_KEY = "DISTILLATION.ID_TABLE."


class TeacherRows(nn.Module):
    """Means of a teacher's embeddings over the training set, with the student's augmentation.

    Args:
        shape: (L, D) of the table.
        average: average the means of all calls, and so over all augmentations. Their sum is a
            buffer, which checkpoints keep.
    """

    #: Whether the means are of the teacher's embeddings, or else of the student's.
    uses_teacher = True
    total: torch.Tensor

    def __init__(self, shape: torch.Size, average: bool = False):
        super().__init__()
        self.average = average
        if average:
            self.register_buffer("total", torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def forward(
        self, means: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New rows and counts of the table.

        Args:
            means: (L, D), unit rows of the teacher.
            counts: (L,) number of boxes of each; 0 leaves the row unchanged.
        """
        if not self.average:
            return means, counts
        self.total += torch.where(counts[:, None] > 0, means, 0).to(self.total)
        rows = nn.functional.normalize(self.total).to(means)
        return rows, self.total.any(dim=1).to(counts)


class BlendedRows(nn.Module):
    """normalize((1 - share) teacher + share student).

    The teacher's part is that of the table file, so that the student's share does not grow with the
    number of calls.

    Args:
        teacher_rows: (L, D), unit rows; zeros for an identity that the teacher does not have, whose
            row does not change.
        share: of the student, between 0 and 1.
    """

    uses_teacher = False
    teacher_rows: torch.Tensor

    def __init__(self, teacher_rows: torch.Tensor, share: float):
        super().__init__()
        # Not in checkpoints: the rows are in the table file.
        self.register_buffer("teacher_rows", teacher_rows.clone(), persistent=False)
        self.share = share

    @torch.no_grad()
    def forward(
        self, means: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`TeacherRows.forward`, with the means of the student."""
        teacher = self.teacher_rows.to(means.device, torch.float64)
        mixed = (1 - self.share) * teacher + self.share * means.double()
        known = teacher.any(dim=1).to(counts)
        return nn.functional.normalize(mixed).to(means), counts * known


TableRefresh = Union[TeacherRows, BlendedRows]


def build_table_refresh(cfg: CfgNode, rows: torch.Tensor) -> Optional[TableRefresh]:
    """The refresh of ``DISTILLATION.ID_TABLE.REFRESH_PERIOD`` and ``REFRESH_SOURCE``.

    Args:
        cfg: the student's config.
        rows: (L, D) of the table file.

    Raises:
        ValueError: a key is out of range, or contradicts another.
    """
    node = cfg.DISTILLATION.ID_TABLE
    source = node.REFRESH_SOURCE
    check_choice(f"{_KEY}REFRESH_SOURCE", source, ("teacher", "blend"))
    if node.REFRESH_PERIOD < 0:
        raise ValueError(f"{_KEY}REFRESH_PERIOD {node.REFRESH_PERIOD} must be 0 or more")
    if node.REFRESH_PERIOD == 0:
        return None
    if source == "blend":
        if node.MODE == "frozen":
            raise ValueError(
                f"{_KEY}REFRESH_SOURCE 'blend' moves rows, and {_KEY}MODE 'frozen' does not: set "
                "MODE to 'momentum' or 'ema', or REFRESH_SOURCE to 'teacher'"
            )
        share = node.REFRESH_STUDENT_SHARE
        if not 0 < share < 1:
            raise ValueError(f"{_KEY}REFRESH_STUDENT_SHARE {share} must be between 0 and 1")
        return BlendedRows(rows, share)
    teacher = cfg.DISTILLATION.TEACHER
    if not teacher.CONFIG_FILE:
        raise ValueError(
            f"{_KEY}REFRESH_SOURCE 'teacher' requires a teacher, but "
            "DISTILLATION.TEACHER.CONFIG_FILE is empty: set it to the one that made the table"
        )
    if teacher.BATCH_STATISTICS:
        raise ValueError(
            f"{_KEY}REFRESH_SOURCE 'teacher' embeds image by image: set "
            "DISTILLATION.TEACHER.BATCH_STATISTICS to False"
        )
    return TeacherRows(rows.shape, node.REFRESH_AVERAGE)
