"""How the rows of a distilled ID table are recomputed during training."""

from typing import Optional, Union

import torch
from torch import nn

SOURCES = ("teacher", "blend")
_KEY = "DISTILLATION.ID_TABLE."


class TeacherRows(nn.Module):
    """Means of a live teacher's embeddings over the training set, as the student now sees it.

    Args:
        shape: (L, D) of the table.
        average: average the means over all calls, which is over all views that the augmentation
            has shown; the sum is a buffer, so that a resumed run goes on with it.
    """

    #: Whether it takes means of a live teacher's embeddings; otherwise of the student's.
    uses_teacher = True

    def __init__(self, shape: tuple[int, int], average: bool = False):
        super().__init__()
        self.average = average
        if average:
            self.register_buffer("total", torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def forward(
        self, means: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            means: (L, D), unit rows of the teacher.
            counts: (L,) boxes behind each; a row without any stays as it is.

        Returns:
            as the arguments, on their device: what the table becomes.
        """
        if not self.average:
            return means, counts
        self.total += torch.where(counts[:, None] > 0, means, 0).to(self.total)
        rows = nn.functional.normalize(self.total).to(means)
        return rows, self.total.any(dim=1).to(counts)


class BlendedRows(nn.Module):
    """The teacher's rows, as the table file has them, with a share of the student's means.

    normalize((1 - share) teacher + share student). The teacher's part is the same in every
    refresh, so that the student's share is the stated one however often it is called.

    Args:
        teacher_rows: (L, D), unit rows; zeros where the teacher knows nobody. Such a row stays as
            it is: it would be the student's alone.
        share: of the student, between 0 and 1.
    """

    uses_teacher = False

    def __init__(self, teacher_rows: torch.Tensor, share: float):
        super().__init__()
        # Checkpoints need not hold what the table file does.
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


def build_table_refresh(cfg, rows: torch.Tensor) -> Optional[TableRefresh]:
    """The refresh that ``DISTILLATION.ID_TABLE.REFRESH_PERIOD`` and ``REFRESH_SOURCE`` configure.

    Args:
        cfg: the student's config.
        rows: (L, D) of the table file.

    Raises:
        ValueError: keys contradict each other or are out of range; the line names them.
    """
    node = cfg.DISTILLATION.ID_TABLE
    source = node.REFRESH_SOURCE
    if source not in SOURCES:
        raise ValueError(f"{_KEY}REFRESH_SOURCE {source!r} must be one of {SOURCES}")
    if node.REFRESH_PERIOD < 0:
        raise ValueError(f"{_KEY}REFRESH_PERIOD {node.REFRESH_PERIOD} must be 0 or more")
    if node.REFRESH_PERIOD == 0:
        return None
    if source == "blend":
        if node.MODE == "frozen":
            raise ValueError(
                f"{_KEY}REFRESH_SOURCE 'blend' would move the rows of {_KEY}MODE 'frozen' towards "
                "the student: set MODE 'momentum' or 'ema', or REFRESH_SOURCE 'teacher'"
            )
        share = node.REFRESH_STUDENT_SHARE
        if not 0 < share < 1:
            raise ValueError(f"{_KEY}REFRESH_STUDENT_SHARE {share} must be between 0 and 1")
        return BlendedRows(rows, share)
    teacher = cfg.DISTILLATION.TEACHER
    if not teacher.CONFIG_FILE:
        raise ValueError(
            f"{_KEY}REFRESH_SOURCE 'teacher' needs a live teacher, but "
            "DISTILLATION.TEACHER.CONFIG_FILE is empty: name the one that made the table"
        )
    if teacher.BATCH_STATISTICS:
        raise ValueError(
            f"{_KEY}REFRESH_SOURCE 'teacher' embeds image by image: set "
            "DISTILLATION.TEACHER.BATCH_STATISTICS False"
        )
    return TeacherRows(tuple(rows.shape), node.REFRESH_AVERAGE)
