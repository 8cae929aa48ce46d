"""What student and teacher know of the people of all ranks."""

from collections.abc import Iterable
from typing import Optional

from kd_search.outputs import (
    Crops,
    Knowledge,
)
from kd_search.utils.collectives import join_rows

#: Fields with a row for each person, those of the same people together.
_PEOPLE = (
    ("crops", "crop_embeddings", "crop_identity_logits"),
    ("embeddings", "person_ids", "identity_logits"),
)
#: What a term may name as its ``joint_fields``.
JOINABLE_FIELDS = frozenset().union(*_PEOPLE)


def join_knowledge(
    student: Knowledge, teacher: Optional[Knowledge], fields: Iterable[str]
) -> tuple[Knowledge, Optional[Knowledge]]:
    """Return the named fields for the joint batch, rank after rank; a collective call.

    Gradients as :func:`~kd_search.utils.collectives.join_rows`.

    Args:
        student, teacher: of this rank's batch.
        fields: of ``JOINABLE_FIELDS``; what is ``None`` stays so, on all ranks alike. Of
            ``crops`` there are ``person_ids`` and ``shifted`` in the result, no boxes.

    Returns:
        two :class:`Knowledge` with these fields alone.

    Raises:
        FloatingPointError: a field is not finite, here or elsewhere.
    """
    fields = set(fields)
    own = [k for k in (student, teacher) if k is not None]
    joint = [Knowledge() for _ in own]
    for names in _PEOPLE:
        names = [name for name in names if name in fields]
        places = [
            (number, name)
            for number, known in enumerate(own)
            for name in names
            if name != "crops" and getattr(known, name) is not None
        ]
        tensors = [getattr(own[number], name) for number, name in places]
        if "crops" in names:
            tensors += [student.crops.person_ids, student.crops.shifted]
        if not tensors:
            continue
        joined = join_rows(*tensors)
        for (number, name), tensor in zip(places, joined):
            setattr(joint[number], name, tensor)
        if "crops" in names:
            crops = Crops([], joined[-2], joined[-1], [], [])
            for known in joint:
                known.crops = crops
    return joint[0], joint[1] if teacher is not None else None
