"""Outputs of student and teacher for the people of all ranks."""

from typing import Any, Optional

from kd_search.outputs import (
    CROP_PARTS,
    IDENTITY_PARTS,
    CropOutputs,
    Crops,
    IdentityOutputs,
    ModelOutputs,
    Part,
)
from kd_search.utils.comm import join_rows

#: Values that a term may have in ``joint_parts``.
JOINABLE_PARTS = IDENTITY_PARTS | CROP_PARTS


def join_outputs(
    student: ModelOutputs, teacher: Optional[ModelOutputs], parts: frozenset[Part]
) -> tuple[ModelOutputs, Optional[ModelOutputs]]:
    """The named parts of the joint batch, rank after rank; a collective call.

    Gradients as :func:`~kd_search.utils.comm.join_rows`.

    Args:
        student, teacher: of this rank's batch.
        parts: of ``JOINABLE_PARTS``; a part that is ``None`` must be so on all ranks. Identities
            are included: ``identities.person_ids`` and ``crops.crops``, without boxes.

    Returns:
        two :class:`ModelOutputs` with these parts only.

    Raises:
        FloatingPointError: a part is not finite on some rank.
    """
    own = [outputs for outputs in (student, teacher) if outputs is not None]
    joint = [ModelOutputs() for _ in own]
    if parts & IDENTITY_PARTS:
        joint = _join_identities(own, parts)
    if parts & CROP_PARTS:
        crops = _join_crops(own, parts)
        joint = [ModelOutputs(identities=a.identities, crops=c) for a, c in zip(joint, crops)]
    return joint[0], joint[1] if teacher is not None else None


def _join_identities(own: list[ModelOutputs], parts: frozenset[Part]) -> list[ModelOutputs]:
    columns = [
        (
            x.embeddings if Part.EMBEDDINGS in parts else None,
            x.person_ids,
            x.logits if Part.IDENTITY_LOGITS in parts else None,
        )
        for x in (outputs.identities or IdentityOutputs() for outputs in own)
    ]
    return [ModelOutputs(identities=IdentityOutputs(*joined)) for joined in _join(columns)]


def _join_crops(own: list[ModelOutputs], parts: frozenset[Part]) -> list[Any]:
    columns = [
        (None,) * 4
        if x is None
        else (
            x.crops.person_ids,
            x.crops.shifted,
            x.embeddings if Part.CROP_EMBEDDINGS in parts else None,
            x.logits if Part.CROP_LOGITS in parts else None,
        )
        for x in (outputs.crops for outputs in own)
    ]
    return [
        None if ids is None else CropOutputs(Crops([], ids, shifted), embeddings, logits)
        for ids, shifted, embeddings, logits in _join(columns)
    ]


def _join(columns: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Join all tensors in one call, so that their rows stay together; ``None`` stays."""
    tensors = [x for row in columns for x in row if x is not None]
    joined = iter(join_rows(*tensors) if tensors else ())
    return [tuple(None if x is None else next(joined) for x in row) for row in columns]
