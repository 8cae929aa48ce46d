"""Companions: modules that run beside the student for some terms."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from kd_search.distillation.protocols import Batch, CompanionLike, check_protocol
from kd_search.outputs import ModelOutputs, ModelSpec, Part

COMPANION_REGISTRY = Registry("COMPANION")
COMPANION_REGISTRY.__doc__ = """
Companions: modules that run beside the student because a term names them in ``companions``.

A registered class has the attributes and methods of :class:`Companion` and is called as
``cls(cfg, student, teacher)`` with the specifications of the networks; ``teacher`` is ``None`` if
no teacher runs. Parameters and buffers are optimized with the student and saved in checkpoints
under ``checkpoint_key``, or the name of the class.
"""


class Companion(nn.Module):
    """Computes in every training step what terms read beside the outputs of the two networks.

    Examples are a re-ID teacher with its crops, and a bank of prototypes. Every method does nothing
    by default.
    """

    #: Parts of the teacher's outputs that :meth:`after_student` fills: no other teacher is required
    #: for them.
    provides: frozenset[Part] = frozenset()
    #: Parts of the student's and of the teacher's outputs that :meth:`after_student` reads.
    student_parts: frozenset[Part] = frozenset()
    teacher_parts: frozenset[Part] = frozenset()
    #: Whether batches must hold the images before any transform (``INPUT.WITH_ORIGINAL_IMAGE``).
    needs_original_images: bool = False
    #: Name of the state in checkpoints; empty: the name of the class.
    checkpoint_key: str = ""

    def setup(self, terms: Sequence[Any]) -> None:
        """Called once, before the first batch, with the terms that name this companion."""

    def set_teacher(self, network: Any) -> None:
        """Called once before :meth:`setup`, where there is a teacher, with its frozen network.

        For companions that call parts of it, such as its head, with other inputs. Hold it in a
        list: as a submodule it would be trained and saved.
        """

    def extend_spec(self, teacher: Optional[ModelSpec]) -> Optional[ModelSpec]:
        """The specification of the teacher with the parts that this companion provides."""
        return teacher

    def before_student(self, batched_inputs: Batch) -> Any:
        """Work on the batch alone, before any activation of the student is in memory.

        The result is passed to :meth:`after_student`.
        """

    def after_student(
        self, network: Any, student: ModelOutputs, teacher: Optional[ModelOutputs], early: Any
    ) -> tuple[ModelOutputs, Optional[ModelOutputs]]:
        """Outputs of student and teacher with the additions of this companion, as new objects.

        Args:
            network: the student.
            student, teacher: of this batch and regions; ``teacher`` is ``None`` if none runs.
            early: of :meth:`before_student`.
        """
        return student, teacher

    def set_progress(self, progress: float) -> None:
        """Called before every step with iteration / ``SOLVER.MAX_ITER``."""

    def hooks(self, trainer: Any, distiller: Any) -> list[Any]:
        """Hooks of the companion; they run first, and outside of the timer of a step.

        Args:
            trainer: a :class:`~kd_search.engine.PersonSearchTrainer` under construction.
            distiller: the owner of this companion.
        """
        return []

    def frozen_networks(self) -> Sequence[nn.Module]:
        """Networks that stay in evaluation mode and out of checkpoints, moved with ``.to()``.

        ``nn.Module`` must not register them: hold them in a list, for example.
        """
        return ()


def companions_of(terms: Mapping[str, Any]) -> list[str]:
    """Names of the companions of terms, in order of first use.

    Raises:
        ValueError: a name is not registered.
    """
    known = sorted(name for name, _ in COMPANION_REGISTRY)
    names: list[str] = []
    for term in terms.values():
        for name in term.companions:
            if name not in known:
                raise ValueError(
                    f"DISTILLATION.TERMS: {type(term).__name__} names the companion {name!r}, "
                    f"which is none of {known}"
                )
            if name not in names:
                names.append(name)
    return names


def build_companions(
    cfg: CfgNode, names: Sequence[str], student: ModelSpec, teacher: Optional[ModelSpec]
) -> dict[str, Companion]:
    """Build companions by name, in order."""
    return {name: COMPANION_REGISTRY.get(name)(cfg, student, teacher) for name in names}


def check_companions(terms: Mapping[str, Any], companions: Mapping[str, Any]) -> None:
    """Raise ValueError if a companion of a term is missing or lacks a method."""
    for term in terms.values():
        missing = [name for name in term.companions if name not in companions]
        if missing:
            raise ValueError(
                f"DISTILLATION.TERMS: {type(term).__name__} requires the companion {missing[0]}: "
                "pass it to the Distiller"
            )
    for companion in companions.values():
        check_protocol(companion, CompanionLike, "a companion", "DISTILLATION.TERMS")
