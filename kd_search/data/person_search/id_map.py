"""Map between the identities of a data set and contiguous rows of the ID table."""

import re
from collections.abc import Iterable, Mapping
from typing import Optional, Union

#: Id of a person in the files of a data set.
OriginalID = Union[int, str]

_NEGATIVE = re.compile(r"-\d+")


def is_labelled(original: Optional[OriginalID]) -> bool:
    """Whether an original ``person_id`` names a person.

    ``None``, the empty string and negative numbers (-2 in PRW, -1 in others), also as strings, mean
    a person of unknown identity.
    """
    if original is None:
        return False
    if isinstance(original, str):
        return original != "" and not _NEGATIVE.fullmatch(original)
    return original >= 0


class IDMap:
    """Two-way map between the original ids of one split and rows ``0 .. len - 1``.

    Rows follow the ascending order of the original ids (numbers as numbers, strings as strings),
    so that equal sets of ids have equal rows on every machine and in every run.

    Args:
        original_ids: ids of the split in any order, repeats allowed; unlabelled ones (``None``,
            negative) are left out.

    Raises:
        ValueError: an id is neither an integer nor a string, or both types occur.
    """

    def __init__(self, original_ids: Iterable[Optional[OriginalID]] = ()) -> None:
        ids = {i for i in map(_checked, original_ids) if i is not None}
        if len({type(original) for original in ids}) > 1:
            number = next(i for i in ids if isinstance(i, int))
            text = next(i for i in ids if isinstance(i, str))
            raise ValueError(
                f"person ids mix numbers and strings (such as {number} and {text!r}); use one type"
            )
        self._originals: tuple[OriginalID, ...] = tuple(sorted(ids))
        self._rows: dict[OriginalID, int] = {o: row for row, o in enumerate(self._originals)}

    def row(self, original: Optional[OriginalID]) -> int:
        """Row of an original id; -1 where it is unlabelled or not in the map."""
        if original is None or not is_labelled(original):
            return -1
        return self._rows.get(original, -1)

    def original(self, row: int) -> OriginalID:
        """Original id of a row.

        Raises:
            IndexError: there is no such row (such as -1: unlabelled people have no original id).
        """
        if not 0 <= row < len(self._originals):
            raise IndexError(f"row {row} is not in this id map of {len(self._originals)} ids")
        return self._originals[row]

    def to_list(self) -> list[OriginalID]:
        """Original ids in row order; ``IDMap(m.to_list()) == m``."""
        return list(self._originals)

    def __len__(self) -> int:
        return len(self._originals)

    def __contains__(self, original: object) -> bool:
        return original in self._rows

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IDMap):
            return NotImplemented
        return self._originals == other._originals

    def __hash__(self) -> int:
        return hash(self._originals)

    def __repr__(self) -> str:
        if not self._originals:
            return "IDMap(0 ids)"
        return f"IDMap({len(self)} ids, {self._originals[0]!r} .. {self._originals[-1]!r})"


def join_id_maps(maps: Mapping[str, IDMap]) -> tuple[IDMap, dict[str, list[int]]]:
    """Map over the people of several sets, who are all different: ids become ``"<set>/<id>"``.

    Args:
        maps: id map of each set by its name.

    Returns:
        The joint map, and for each set the joint row of each of its rows.
    """
    ids = {name: [f"{name}/{original}" for original in ids.to_list()] for name, ids in maps.items()}
    joint = IDMap(original for of_set in ids.values() for original in of_set)
    return joint, {name: [joint.row(original) for original in ids[name]] for name in ids}


def _checked(original: Optional[OriginalID]) -> Optional[OriginalID]:
    """The id as a plain int or str; ``None`` where it is unlabelled."""
    if isinstance(original, bool) or not (
        original is None or isinstance(original, str) or hasattr(original, "__index__")
    ):
        raise ValueError(f"person id {original!r} is neither an integer nor a string")
    if original is None or not is_labelled(original):
        return None
    return original if isinstance(original, str) else int(original)
