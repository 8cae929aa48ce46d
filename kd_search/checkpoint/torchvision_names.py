"""torchvision's names of ResNet weights, translated to Detectron2's."""

import re
from collections.abc import Iterable
from typing import Any

_MARKS = ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight")
_RULES = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def is_torchvision_resnet(state: dict[str, Any]) -> bool:
    """Whether a state dict has the names of torchvision's ResNet."""
    return all(mark in state for mark in _MARKS)


def rename_torchvision_resnet(
    state: dict[str, Any], model_keys: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Give torchvision's ResNet weights the names they have in a Detectron2 model.

    Where the backbone hangs is read from the model: ``backbone.`` (C4), ``backbone.bottom_up.``
    (FPN), and ``roi_heads.res5.`` for the stage that C4 heads run for each region. Weights that the
    model holds at several places go to all of them.

    Args:
        state: names to weights.
        model_keys: names in the model's state dict.

    Returns:
        the renamed state, and torchvision names without a place in the model (the classifier).
    """
    places: dict[str, list[str]] = {}
    for key in model_keys:
        parts = key.split(".")
        for start, part in enumerate(parts):
            if part == "stem" or re.fullmatch(r"res\d", part):
                places.setdefault(".".join(parts[start:]), []).append(key)
    renamed, left = {}, []
    for key, value in state.items():
        name = key
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        renamed.update((place, value) for place in places.get(name, ()))
        if name not in places and not name.endswith("num_batches_tracked"):
            left.append(key)
    return renamed, left
