"""Entries of Detectron2's catalogs: kind of a set, replacement of sets and of their metadata."""

import difflib
from collections.abc import Iterable
from typing import Any, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

# Keys that the last load of each set stored in its metadata.
_LOADED_KEYS: dict[str, set[str]] = {}


def set_metadata(name: str, **values: Any) -> None:
    """Set metadata of a set, also where Detectron2 would refuse to change a value.

    Files may differ from those of an earlier load. Values are not compared: galleries are large.
    """
    metadata = MetadataCatalog.get(name)
    for key in values:
        vars(metadata).pop(key, None)
    metadata.set(**values)


def replace_loaded_metadata(name: str, values: dict[str, Any]) -> None:
    """Set what a load of a set has read, and remove the other keys of its previous load."""
    for key in _LOADED_KEYS.get(name, ()):
        vars(MetadataCatalog.get(name)).pop(key, None)
    set_metadata(name, **values)
    _LOADED_KEYS[name] = set(values)


def unregister(name: str) -> None:
    """Remove a set from the catalogs if it is there."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)


def require_registered(name: str) -> None:
    """Check that a data set is registered.

    Raises:
        ValueError: it is not; the message lists the names closest to it.
    """
    known = DatasetCatalog.list()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f", did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"data set {name!r} is not registered{hint}")


def is_person_search(name: str) -> bool:
    """Whether a registered set has whole images with identities."""
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type")
    return kind == "person_search" or metadata.get("person_ids") is not None


def is_reid(name: str) -> bool:
    """Whether a registered set consists of crops or tracklets."""
    return MetadataCatalog.get(name).get("evaluator_type") == "reid"


def names_of(names: Union[str, Iterable[str]]) -> list[str]:
    """One name or several, such as ``cfg.DATASETS.TRAIN``, as a list.

    Raises:
        ValueError: there is none.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no data set is named; set DATASETS.TRAIN or DATASETS.TEST")
    return names
