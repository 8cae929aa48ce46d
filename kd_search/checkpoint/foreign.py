"""Weights of other packages: .pkl files of arrays, and torchvision's names."""

import codecs
import collections
import os
import pickle
import re
from collections.abc import Iterable
from typing import Any, Union

import numpy as np


def load_arrays_pickle(path: Union[str, os.PathLike[str]]) -> Any:
    """Unpickle a file of arrays and plain containers, such as Detectron2's and Detectron's weights.

    Names in the pickle are looked up in a short list instead of being imported, so that the file
    cannot run code.

    Raises:
        ValueError: the file is corrupt or contains anything else; names the file.
    """
    with open(path, "rb") as f:
        try:
            content = _ArraysOnlyUnpickler(f, encoding="latin1").load()
        except _RefusedError as error:
            raise ValueError(
                f"{path} is refused: it contains {error}, and only arrays and plain containers are "
                "read from .pkl files. Set MODEL.TRUST_PICKLE True to load it, if you trust its "
                "source: it may run code"
            ) from None
        except Exception as error:  # a corrupt pickle can fail in any way
            raise ValueError(f"{path} is corrupt or no pickle: {error}") from error
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
        elif isinstance(item, np.ndarray) and item.dtype.hasobject:
            raise ValueError(f"{path} is refused: it contains an array of Python objects")
    return content


class _RefusedError(pickle.UnpicklingError):
    pass


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stands for the function by which Python 3 pickles bytes for Python 2."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise _RefusedError(f"the text encoding {encoding}")
    return text.encode("latin1")


# By way of __reduce__, as the names of these functions depend on the version of NumPy.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR: Any = np.float64(0).__reduce__()[0]

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode_latin1,
}


class _ArraysOnlyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise _RefusedError(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("a persistent object")


_TORCHVISION_RESNET = ("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight")
_TORCHVISION_RULES: tuple[tuple[str, Any], ...] = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def is_torchvision_resnet(state: dict[str, Any]) -> bool:
    """Whether a state dict has the names of torchvision's ResNet."""
    return all(name in state for name in _TORCHVISION_RESNET)


def rename_torchvision_resnet(
    state: dict[str, Any], model_keys: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Rename torchvision's ResNet weights to those of a Detectron2 model.

    The prefixes are those of the model: ``backbone.`` (C4), ``backbone.bottom_up.`` (FPN), and
    ``roi_heads.res5.`` for the stage that C4 heads run for each region. A weight that the model has
    under several prefixes is repeated.

    Args:
        state: names to weights.
        model_keys: names in the model's state dict.

    Returns:
        the renamed state, and the names that are not in the model (the classifier).
    """
    places: dict[str, list[str]] = {}
    for key in model_keys:
        parts = key.split(".")
        for start, part in enumerate(parts):
            if part == "stem" or re.fullmatch(r"res\d", part):
                places.setdefault(".".join(parts[start:]), []).append(key)
    renamed: dict[str, Any] = {}
    left = []
    for key, value in state.items():
        name = key
        for pattern, replacement in _TORCHVISION_RULES:
            name = re.sub(pattern, replacement, name)
        renamed.update((place, value) for place in places.get(name, ()))
        if name not in places and not name.endswith("num_batches_tracked"):
            left.append(key)
    return renamed, left
