"""Reads .pkl weights without running what is in them."""

import codecs
import collections
import os
import pickle
from typing import Any, Union

import numpy as np


def load_arrays_pickle(path: Union[str, os.PathLike]) -> Any:
    """Unpickle a file of arrays and plain containers; refuse everything else.

    Enough for the weights of Detectron2's and Detectron's model zoos. A pickle is a program: what
    it asks for by name is looked up in a short list of harmless things instead of being imported.

    Raises:
        ValueError: naming the file and what it asked for, or that it is torn.
    """
    with open(path, "rb") as f:
        try:
            content = _ArraysOnlyUnpickler(f, encoding="latin1").load()
        except _RefusedError as error:
            raise ValueError(
                f"{path} is refused: it asks for {error}, and only arrays and plain containers are "
                "read from .pkl files. Set MODEL.TRUST_PICKLE True to run it all the same, if you "
                "trust whoever made it"
            ) from None
        except Exception as error:  # a torn pickle fails in whatever way its next byte says
            raise ValueError(f"{path} is torn or no pickle: {error}") from error
    _refuse_objects(content, path)
    return content


class _RefusedError(pickle.UnpicklingError):
    pass


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes for Python 2."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise _RefusedError(f"the text encoding {encoding}")
    return text.encode("latin1")


# Whatever NumPy calls these functions in this version.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]

_ALLOWED = {
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


def _refuse_objects(content: Any, path: Union[str, os.PathLike]) -> None:
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
        elif isinstance(item, np.ndarray) and item.dtype.hasobject:
            raise ValueError(f"{path} is refused: it holds an array of Python objects")
