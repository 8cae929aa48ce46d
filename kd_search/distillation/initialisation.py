"""Initial layers of a student: copied from its teacher, or reset to random values."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Union

import torch
from torch import nn

logger = logging.getLogger(__name__)

_KEY = "DISTILLATION.INIT_FROM_TEACHER"


@torch.no_grad()
def init_from_teacher(
    student: nn.Module, teacher: nn.Module, layers: Sequence[Union[str, Sequence[str]]]
) -> list[str]:
    """Copy parameters and buffers of the teacher into the student, and log them by name.

    Args:
        student: changed in place.
        teacher: source of the values.
        layers: prefixes of names that both have, or pairs (student, teacher). A prefix is a whole
            module or parameter: "backbone.fpn" does not match "backbone.fpn_output3".

    Returns:
        the names in the student that were set.

    Raises:
        ValueError: there are no parameters under a prefix, or other names or shapes in the other
            network. Nothing is copied.
    """
    ours, theirs = student.state_dict(keep_vars=True), teacher.state_dict()
    copies = {}
    for entry in layers:
        pair = (entry, entry) if isinstance(entry, str) else tuple(entry)
        if len(pair) != 2:
            raise ValueError(f"{_KEY}: {entry!r} must be a prefix or [student, teacher]")
        copies.update(_matching(ours, theirs, *pair))
    for name, source in copies.items():
        ours[name].data.copy_(theirs[source])
    if copies:
        logger.info("Initialised from the teacher:\n%s", _names_by_module(copies))
    return list(copies)


def _names_by_module(sources: Mapping[str, str]) -> str:
    """A line for each module with its parameters and buffers, and their sources if named
    differently."""
    modules: dict[tuple[str, str], list[str]] = {}
    for name, source in sources.items():
        own, theirs = name.rpartition("."), source.rpartition(".")
        text = own[2] if own[2] == theirs[2] else f"{own[2]} ({theirs[2]})"
        modules.setdefault((own[0], theirs[0]), []).append(text)
    return "\n".join(
        f"  {own}: {', '.join(texts)}" + (f" from {theirs}" if theirs != own else "")
        for (own, theirs), texts in modules.items()
    )


def _matching(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], prefix: str, source: str
) -> dict[str, str]:
    """Names in the student under ``prefix`` to those in the teacher under ``source``."""
    own, given = _under(ours, prefix), _under(theirs, source)
    for side, found, name in (("student", own, prefix), ("teacher", given, source)):
        if not found:
            raise ValueError(f"{_KEY}: the {side} has no parameter under {name!r}")
    if own.keys() != given.keys():
        first = min(own.keys() ^ given.keys())
        raise ValueError(
            f"{_KEY}: {prefix!r} of the student and {source!r} of the teacher differ: only one of "
            f"them has {(first or prefix)!r}"
        )
    for rest, name in own.items():
        a, b = tuple(ours[name].shape), tuple(theirs[given[rest]].shape)
        if a != b:
            raise ValueError(
                f"{_KEY}: {name} of the student has shape {a}, {given[rest]} of the teacher {b}"
            )
    return {name: given[rest] for rest, name in own.items()}


def _under(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Names equal to the prefix or under it, by their part after the prefix."""
    return {
        name[len(prefix) :]: name
        for name in names
        if name == prefix or name.startswith(prefix.rstrip(".") + ".")
    }


def copy_layers(model: nn.Module, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of the parameters and buffers under some prefixes, for :func:`reinitialize`.

    Raises:
        ValueError: there are no parameters under a prefix.
    """
    state = model.state_dict()
    values: dict[str, torch.Tensor] = {}
    for prefix in layers:
        names = _under(state, prefix).values()
        if not names:
            raise ValueError(
                f"DISTILLATION.FRESH_LAYERS: the student has no parameter under {prefix!r}"
            )
        values.update((name, state[name].clone()) for name in names)
    return values


def reinitialize(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Restore values of :func:`copy_layers`, and log them by name."""
    model.load_state_dict(values, strict=False)
    if values:
        logger.info("Reinitialised:\n%s", _names_by_module({name: name for name in values}))
