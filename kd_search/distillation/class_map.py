"""Classes of a teacher mapped to those of its student."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class ClassMap:
    """Maps logits and deltas of a teacher's classes to those of its student.

    Several classes of the teacher may become one of the student. Those that become none count as
    background.
    """

    def __init__(self, pairs: Sequence[Sequence[int]], num_teacher: int, num_student: int):
        """
        Args:
            pairs: (class of the teacher, class of the student); empty for the same classes in the
                same order.
            num_teacher: classes of the teacher, without background.
            num_student: classes of the student, without background.

        Raises:
            ValueError: classes that differ without a map, or a map that names a class that is not
                there, one of the teacher twice, or one of the student never.
        """
        key = "DISTILLATION.TEACHER.CLASS_MAP"
        if not pairs and num_teacher != num_student:
            raise ValueError(
                f"the teacher has {num_teacher} classes, the student {num_student}: set {key} to "
                "pairs [teacher class, student class]"
            )
        pairs = [tuple(pair) for pair in pairs] or [(c, c) for c in range(num_student)]
        #: Classes of the teacher behind each class of the student.
        self.groups: list[list[int]] = [[] for _ in range(num_student)]
        taken = set()
        for pair in pairs:
            if len(pair) != 2:
                raise ValueError(f"{key}: {list(pair)} must be [teacher class, student class]")
            theirs, ours = pair
            if not (0 <= theirs < num_teacher and 0 <= ours < num_student):
                raise ValueError(
                    f"{key}: [{theirs}, {ours}] is out of range: the teacher has classes "
                    f"0..{num_teacher - 1}, the student 0..{num_student - 1}"
                )
            if theirs in taken:
                raise ValueError(f"{key} maps class {theirs} of the teacher twice")
            taken.add(theirs)
            self.groups[ours].append(theirs)
        without = [c for c, group in enumerate(self.groups) if not group]
        if without:
            raise ValueError(
                f"{key} gives no class of the teacher to class {without[0]} of the student"
            )
        #: Classes of the teacher that the student does not have.
        self.background = [c for c in range(num_teacher) if c not in taken]
        self.num_teacher = num_teacher
        self.is_identity = num_teacher == num_student and all(
            group == [c] for c, group in enumerate(self.groups)
        )

    def student_classes(self, classes: torch.Tensor) -> torch.Tensor:
        """(N,) int64 classes of the teacher to those of the student, -1 where it has none."""
        table = torch.full((self.num_teacher,), -1, dtype=torch.int64)
        for ours, group in enumerate(self.groups):
            table[group] = ours
        return table.to(classes.device)[classes]

    def softmax_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(R, K_teacher + 1) to (R, K_student + 1), background last.

        The probability of a class is the sum of those behind it (exactly so at temperature 1).
        """
        if self.is_identity:
            return logits
        groups = [*self.groups, [*self.background, self.num_teacher]]
        return torch.stack([logits[:, group].logsumexp(dim=1) for group in groups], dim=1)

    def sigmoid_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., K_teacher) to (..., K_student): the most likely of the classes behind each."""
        if self.is_identity:
            return logits
        return torch.stack([logits[..., group].amax(dim=-1) for group in self.groups], dim=-1)

    def deltas(self, deltas: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """(R, 4 K_teacher) deltas to (R, 4 K_student); class-agnostic (R, 4) ones stay.

        Args:
            deltas: of the teacher.
            logits: (R, K_teacher + 1) of the teacher: where several of its classes are behind one,
                the deltas of the most likely are taken.
        """
        if self.is_identity or deltas.shape[1] == 4 < 4 * self.num_teacher:
            return deltas
        deltas = deltas.unflatten(1, (-1, 4))
        rows = torch.arange(len(deltas), device=deltas.device)
        columns = []
        for group in self.groups:
            best = torch.tensor(group, device=deltas.device)[logits[:, group].argmax(dim=1)]
            columns.append(deltas[rows, best])
        return torch.cat(columns, dim=1)
