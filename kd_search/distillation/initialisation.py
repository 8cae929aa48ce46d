"""A student that starts with layers of its teacher."""

import logging
from collections.abc import Mapping, Sequence
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
        teacher: gives.
        layers: prefixes of names that both have, or pairs (student, teacher). A prefix is a whole
            module or parameter: "backbone.fpn" does not stand for "backbone.fpn_output3".

    Returns:
        the names in the student that were filled.

    Raises:
        ValueError: a prefix without parameters, or of other parameters or shapes in the other
            network. Nothing is copied then.
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


def _names_by_module(names: Mapping[str, str]) -> str:
    """A line for each module: what was filled, and from where if that has another name.

    Args:
        names: name of each parameter or buffer to that of its source.
    """
    modules: dict[tuple[str, str], list[str]] = {}
    for name, source in names.items():
        own, theirs = name.rpartition("."), source.rpartition(".")
        text = own[2] if own[2] == theirs[2] else f"{own[2]} ({theirs[2]})"
        modules.setdefault((own[0], theirs[0]), []).append(text)
    return "\n".join(
        f"  {own}: {', '.join(texts)}" + (f" from {theirs}" if theirs != own else "")
        for (own, theirs), texts in modules.items()
    )


def _matching(ours: dict, theirs: dict, prefix: str, source: str) -> dict[str, str]:
    """Names in the student and in the teacher under the two prefixes."""
    have = _under(ours, prefix)
    give = _under(theirs, source)
    for side, found, name in (("student", have, prefix), ("teacher", give, source)):
        if not found:
            raise ValueError(f"{_KEY}: the {side} has no parameter under {name!r}")
    if have.keys() != give.keys():
        odd = sorted(have.keys() ^ give.keys())[0]
        raise ValueError(
            f"{_KEY}: {prefix!r} of the student and {source!r} of the teacher differ, the first "
            f"parameter that only one of them has is {(odd or prefix)!r}"
        )
    for rest, name in have.items():
        a, b = tuple(ours[name].shape), tuple(theirs[give[rest]].shape)
        if a != b:
            raise ValueError(
                f"{_KEY}: {name} of the student has shape {a}, {give[rest]} of the teacher {b}"
            )
    return {name: give[rest] for rest, name in have.items()}


def _under(state: dict, prefix: str) -> dict[str, str]:
    """Names that are the prefix or lie under it, by what follows the prefix."""
    return {
        name[len(prefix) :]: name
        for name in state
        if name == prefix or name.startswith(prefix.rstrip(".") + ".")
    }


def copy_layers(model: nn.Module, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Values of the parameters and buffers under some prefixes, to be put back later.

    Raises:
        ValueError: a prefix without parameters.
    """
    state, values = model.state_dict(), {}
    for prefix in layers:
        names = _under(state, prefix).values()
        if not names:
            raise ValueError(
                f"DISTILLATION.FRESH_LAYERS: the student has no parameter under {prefix!r}"
            )
        values.update((name, state[name].clone()) for name in names)
    return values


def reinitialize(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Put values of :func:`copy_layers` back, and log them by name."""
    model.load_state_dict(values, strict=False)
    if values:
        logger.info("Reinitialised:\n%s", _names_by_module({name: name for name in values}))
