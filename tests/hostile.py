"""Strategies for damaged files: a flipped byte, a truncation, or a wrong value in a tree."""

import copy
import json
import math
import os
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

#: Replacements of values; most of them are wrong in any place.
WRONG_VALUES = (
    *(None, True, False, 0, -1, 3, 1.5, -0.5, 10**400, 2**63, 10**20, 1e308, 1e20),
    *(math.nan, math.inf, "", "text", "1", "nan", "a\nb\x00", [], {}, [None], {"a": 1}, [[[]]]),
)
_CHANGES = ("remove", "repeat", "rename", "negate", "empty box", "next")
#: Number of ways to change one place.
WAYS = len(WRONG_VALUES) + len(_CHANGES)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Return the paths to all values in nested dicts and lists, in a fixed order."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += places(value, (*path, key))
    return found


def change(tree: Any, path: tuple, way: int, more_values: tuple = ()) -> Any:
    """Return a copy of nested dicts and lists with one wrong place.

    Args:
        path: of :func:`places`.
        way: below :data:`WAYS`, plus the number of ``more_values``.
        more_values: further replacements.
    """
    tree = copy.deepcopy(tree)
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    key, values = path[-1], (*more_values, *WRONG_VALUES)
    if way < len(values):
        holder[key] = copy.deepcopy(values[way])
        return tree
    kind, value = _CHANGES[way - len(values)], holder[key]
    if kind == "remove":
        del holder[key]
    elif kind == "repeat" and isinstance(holder, list):
        holder.append(copy.deepcopy(value))
    elif kind in ("repeat", "rename") and isinstance(holder, dict):
        holder["x" + str(key)] = value
        if kind == "rename":
            del holder[key]
    elif kind == "empty box" and isinstance(value, list) and len(value) == 4:
        holder[key] = [*value[:2], *value[:2]]
    elif isinstance(value, (int, float)):
        holder[key] = value + 1 if kind == "next" else -value
    return tree


def flip(content: bytes, place: int, bits: int) -> bytes:
    """Return the content with some bits (1 to 255) of the byte at ``place`` flipped."""
    changed = bytearray(content)
    changed[place % len(content)] ^= bits
    return bytes(changed)


def to_json(tree: Any) -> str:
    """Return JSON as Python writes it, with NaN and infinity."""
    return json.dumps(tree)


def lengths(few: int, many: int):
    """Parametrise a test with ``examples``: few by default, many with ``-m fuzz``."""
    return pytest.mark.parametrize(
        "examples", [pytest.param(few), pytest.param(many, marks=pytest.mark.fuzz)]
    )


def try_examples(examples: int, check, *strategies) -> None:
    """Call ``check`` with drawn examples."""
    settings(max_examples=examples)(given(*strategies)(check))()


def changes(tree: Any, more_values: tuple = ()):
    """Strategy: ``tree`` with one wrong place."""
    ways = st.integers(0, WAYS + len(more_values) - 1)
    return st.builds(
        lambda path, way: change(tree, path, way, more_values),
        st.sampled_from(places(tree)),
        ways,
    )


def harms(content: bytes):
    """Strategy: ``content`` with a flipped byte, truncated, or with appended bytes."""
    place = st.integers(0, len(content) - 1)
    return st.one_of(
        st.builds(lambda p, bits: flip(content, p, bits), place, st.integers(1, 255)),
        place.map(lambda p: content[:p]),
        st.binary(min_size=1, max_size=40).map(lambda more: content + more),
    )


def refused(read, path) -> bool:
    """Return whether ``read()`` raises the one-line error about the file; others are bugs."""
    try:
        read()
    except (ValueError, OSError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        assert frame.f_globals["__name__"].startswith("kd_search."), "not raised by kd_search"
        assert os.path.basename(path) in str(error) and "\n" not in str(error), str(error)
        return True
    return False
