"""Plain types of checkpoints, which load with weights_only."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_PLAIN = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)


def to_plain(value: Any, name: str = "checkpoint") -> Any:
    """Copy nested containers, with NumPy scalars as Python numbers and arrays as tensors.

    The versions that modules add to their state dict (``_metadata``) are kept.

    Args:
        value: dicts, lists and tuples of tensors, arrays, numbers and strings.
        name: of the value, for the error.

    Raises:
        TypeError: naming the entry of another type.
    """
    if isinstance(value, torch.Tensor):
        # A parameter would add its class to the file.
        return value.detach()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        plain: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        for key, item in value.items():
            plain[to_plain(key, f"key of {name}")] = to_plain(item, f"{name}.{key}")
        if hasattr(value, "_metadata"):
            plain._metadata = to_plain(value._metadata, f"{name}._metadata")
        return plain
    if type(value) in (list, tuple):
        items = [to_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if type(value) in _PLAIN:
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}: checkpoints hold tensors, numbers, strings, lists, "
        "tuples and dicts only"
    )
