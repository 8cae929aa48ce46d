"""Metadata that is known only once a data set was read, and may differ when it is read again."""

from typing import Any

from detectron2.data import MetadataCatalog

# Keys that the last reading of each set has left.
_LOADED_KEYS: dict[str, set[str]] = {}


def replace_metadata(name: str, values: dict[str, Any]) -> None:
    """Put what was read into Detectron2's metadata of a set, in place of an earlier reading.

    Args:
        name: of the registered set.
        values: key to value; keys of an earlier reading that are not among them go.
    """
    # Metadata refuses to change a value, but files may have been made anew, or in another format,
    # since they were read. Values are not compared: galleries are arrays, and large.
    metadata = MetadataCatalog.get(name)
    for key in _LOADED_KEYS.get(name, set()) | set(values):
        if key in metadata.__dict__:
            delattr(metadata, key)
    metadata.set(**values)
    _LOADED_KEYS[name] = set(values)
