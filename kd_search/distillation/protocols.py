"""Interfaces of networks, terms and companions in distillation.

A :class:`~kd_search.distillation.Distiller` checks them when it is built. No base class of this
package is required.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Optional, Protocol

import torch

from kd_search.outputs import CropOutputs, Crops, ModelOutputs, ModelSpec, Part

Batch = list[dict[str, Any]]
Losses = dict[str, torch.Tensor]


class Student(Protocol):
    """A network that is trained."""

    def spec(self) -> ModelSpec:
        """The network's specification, with the parts that it outputs."""

    def forward_train(self, batched_inputs: Batch) -> tuple[Losses, ModelOutputs]:
        """Scalar losses by name, and the outputs that they were computed from, with gradient."""


class CropStudent(Student, Protocol):
    """A student that embeds given boxes, for companions that provide crops."""

    def embed_crops(self, outputs: ModelOutputs, crops: Crops) -> CropOutputs:
        """Embeddings of boxes of a batch with the given outputs."""


class Teacher(Protocol):
    """A frozen network; it is called without gradient and in evaluation mode."""

    def spec(self) -> ModelSpec:
        """The network's specification, with the parts that it outputs."""

    def forward_teacher(self, batched_inputs: Batch, parts: frozenset[Part]) -> ModelOutputs:
        """Outputs of the student's batch: at least ``parts``, except those of regions, which
        :meth:`RegionTeacher.forward_regions` adds."""


class RegionTeacher(Teacher, Protocol):
    """A teacher that predicts given regions."""

    def forward_regions(
        self, outputs: ModelOutputs, student: ModelOutputs, parts: frozenset[Part]
    ) -> ModelOutputs:
        """``outputs`` of :meth:`forward_teacher` with predictions for the student's regions."""


class EmbeddingTeacher(Teacher, Protocol):
    """A teacher that embeds given boxes between steps."""

    def embed(self, batched_inputs: Batch, boxes: list[torch.Tensor]) -> torch.Tensor:
        """(sum n_i, D) embeddings of N tensors (n_i, 4), XYXY in pixels of each ``image``."""


class CropTeacher(Protocol):
    """A re-ID network that embeds crops."""

    def spec(self) -> ModelSpec:
        """The network's specification; ``crops`` describes embeddings and logits."""

    def crop_features(self, crops: torch.Tensor) -> torch.Tensor:
        """(P, F) features of (P, 3, H, W) crops, 0..255; P may be 0."""

    def classify(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, D) embeddings and (P, L) identity logits of :meth:`crop_features`."""


class Term(Protocol):
    """Interface of :class:`~kd_search.distillation.DistillationTerm`."""

    student_parts: frozenset[Part]
    teacher_parts: frozenset[Part]
    joint_parts: frozenset[Part]
    companions: Sequence[str]
    needs_teacher: bool
    progress: float
    hard_loss_factors: dict[str, float]

    def setup(self, student: ModelSpec, teacher: Optional[ModelSpec]) -> None: ...

    def forward(self, student: ModelOutputs, teacher: Optional[ModelOutputs]) -> Losses: ...

    def hooks(self, trainer: Any) -> list[Any]: ...


class CompanionLike(Protocol):
    """Interface of :class:`~kd_search.distillation.Companion`."""

    provides: frozenset[Part]
    student_parts: frozenset[Part]
    teacher_parts: frozenset[Part]
    needs_original_images: bool

    def setup(self, terms: Sequence[Any]) -> None: ...

    def extend_spec(self, teacher: Optional[ModelSpec]) -> Optional[ModelSpec]: ...

    def before_student(self, batched_inputs: Batch) -> Any: ...

    def after_student(
        self, network: Any, student: ModelOutputs, teacher: Optional[ModelOutputs], early: Any
    ) -> tuple[ModelOutputs, Optional[ModelOutputs]]: ...

    def set_progress(self, progress: float) -> None: ...

    def hooks(self, trainer: Any, distiller: Any) -> list[Any]: ...

    def frozen_networks(self) -> Sequence[Any]: ...


def check_protocol(part: object, protocol: type, what: str, key: str) -> None:
    """Raise ValueError, naming class, member and key, if an object lacks a member of a protocol.

    Args:
        part: a network, term or companion.
        protocol: of this module.
        what: role of the object, for the error.
        key: config key that named it.
    """
    name = type(part).__name__
    for member, expected in _members(protocol).items():
        found = getattr(part, member, None)
        if not callable(expected):
            if not hasattr(part, member):
                raise ValueError(f"{key}: {name} has no attribute {member}: it cannot be {what}")
            if member.endswith("parts") or member == "provides":
                _check_parts(found, f"{key}: {name}.{member}")
            continue
        signature = inspect.signature(expected)
        wanted = list(signature.parameters)[1:]
        shown = f"{member}({', '.join(wanted)})"
        if not callable(found):
            raise ValueError(f"{key}: {name} has no {shown}: it cannot be {what}")
        try:
            inspect.signature(found).bind(*wanted)
        except TypeError:
            raise ValueError(
                f"{key}: {name}.{member}{inspect.signature(found)} must be callable as {shown}"
            ) from None


def _check_parts(parts: Any, where: str) -> None:
    is_set = isinstance(parts, (set, frozenset))
    wrong = [part for part in parts if not isinstance(part, Part)] if is_set else [parts]
    if wrong:
        known = ", ".join(part.name for part in Part)
        found = f"holds {wrong[0]!r}" if is_set else f"is {parts!r}"
        raise ValueError(f"{where} {found}: it must be a set of members of Part ({known})")


def _members(protocol: type) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base in (object, Protocol) or base.__module__ == "typing":
            continue
        members.update(dict.fromkeys(base.__dict__.get("__annotations__", {})))
        members.update(
            (name, value)
            for name, value in base.__dict__.items()
            if inspect.isfunction(value) and not name.startswith("_")
        )
    return members
