"""The manifest of an exported network: JSON beside its file, with all that a user of it needs."""

import json
import os
from pathlib import Path
from typing import Any, Union

from kd_search.utils.files import read_json, write_json

FORMAT = "kd_search.model"
FORMAT_VERSION = 1
#: Key of the copy of the manifest in the metadata of an ONNX file.
METADATA_KEY = "kd_search"
#: Keys of a manifest alone, which the copy in the file does not have: they describe the file, or
#: are known later.
BESIDE_ONLY = ("file", "file_sha256", "file_bytes", "calibration")

_TEXT: tuple[type, ...] = (str,)
_NUMBER: tuple[type, ...] = (int, float)
_OPTIONAL: tuple[type, ...] = (dict, type(None))
#: Types of the keys.
_KEYS: dict[str, tuple[type, ...]] = {
    "network": _TEXT,
    "file": _TEXT,
    "file_sha256": _TEXT,
    "file_bytes": (int,),
    "file_format": _TEXT,
    "weights_type": _TEXT,
    "input_format": _TEXT,
    "max_pixels": (int,),
    "embedding_dim": (int,),
    "classes": (list,),
    "training_sets": (list,),
    "weights_sha256": _TEXT,
    "config_sha256": _TEXT,
    "source_sha256": _TEXT,
    "config": _TEXT,
    "versions": (dict,),
    "parity": _OPTIONAL,
    "calibration": _OPTIONAL,
}
#: Further keys by kind of network.
_NETWORK_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "person_search": {
        "min_size": (int,),
        "max_size": (int,),
        "size_divisibility": (int,),
        "score_threshold": _NUMBER,
        "nms_threshold": _NUMBER,
        "max_detections": (int,),
        "search_score_threshold": _NUMBER,
    },
    "reid": {"crop_size": (list,)},
}
# Compares people with a query by itself; otherwise it is described as a person search network.
_NETWORK_KEYS["query_guided"] = _NETWORK_KEYS["person_search"]
_POSITIVE = ("file_bytes", "max_pixels", "embedding_dim", "max_size", "size_divisibility")

PathLike = Union[str, "os.PathLike[str]"]


class ModelFileError(ValueError):
    """A model file or its manifest is damaged, foreign or refused; one line that names the file."""


def manifest_path(model: PathLike) -> Path:
    """Path of the manifest of a model file: its name with ``.json`` behind it."""
    path = Path(model)
    return path.with_name(path.name + ".json")


def read_manifest(path: PathLike) -> dict[str, Any]:
    """Read and check a manifest.

    Raises:
        ModelFileError: it does not exist, is damaged, was written by a newer version, or lacks a
            key.
    """
    try:
        manifest = read_json(path, "manifest", sealed=True)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise ModelFileError(
                f"{path}: the manifest of the model does not exist: copy it together with the model"
            ) from None
        raise ModelFileError(str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelFileError(f"{path}: not a manifest of an exported network ({FORMAT})")
    version = manifest.get("version")
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: has format version {_shown(version)}, and this kd_search reads "
            f"{FORMAT_VERSION}: update kd_search"
        )
    network = manifest.get("network")
    if not isinstance(network, str) or network not in _NETWORK_KEYS:
        raise ModelFileError(f"{path}: network {_shown(network)} is none of {list(_NETWORK_KEYS)}")
    for key, types in {**_KEYS, **_NETWORK_KEYS[network]}.items():
        value: Any = manifest.get(key)
        # Python's True is an int.
        if key not in manifest or not isinstance(value, types) or isinstance(value, bool):
            raise ModelFileError(f"{path}: {key} is missing or wrong ({_shown(value)})")
        if key in _POSITIVE and isinstance(value, int) and not 0 < value < 2**40:
            raise ModelFileError(f"{path}: {key} {_shown(value)} is out of range")
    if manifest["input_format"] not in ("BGR", "RGB"):
        raise ModelFileError(f"{path}: input_format is neither BGR nor RGB")
    return manifest


def update_manifest(path: PathLike, **values: Any) -> None:
    """Set keys of a manifest that its model file does not have, such as ``calibration``.

    Raises:
        ModelFileError: see :func:`read_manifest`.
        ValueError: a key belongs to the model file as well.
    """
    for key in values:
        if key not in BESIDE_ONLY:
            raise ValueError(f"{key} of a manifest cannot be changed: it is in the model file too")
    write_json(path, {**read_manifest(path), **values}, sealed=True)


def inner_manifest(manifest: dict[str, Any]) -> str:
    """The copy of a manifest for the metadata of the file itself, as JSON."""
    inner = {key: value for key, value in manifest.items() if key not in BESIDE_ONLY}
    return json.dumps(inner, allow_nan=False)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else "no value"
    return text if len(text) < 60 else text[:57] + "..."
