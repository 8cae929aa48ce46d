"""``.npz`` archives of arrays and JSON metadata, without pickles.

Besides the arrays, an archive has an entry ``metadata``: a UTF-8 JSON object as uint8, with
"format", "version" and the fields that the writer adds.
"""

import json
import os
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from kd_search.evaluation.flat_arrays import AnyPath
from kd_search.utils.files import atomic_write


def save_archive(path: AnyPath, arrays: Mapping[str, np.ndarray], /, **metadata: Any) -> None:
    """Write an archive; the file is replaced atomically."""
    text = np.frombuffer(json.dumps(metadata).encode(), dtype=np.uint8)
    with atomic_write(path) as file:
        np.savez(file, **dict(arrays, metadata=text))  # type: ignore[arg-type]  # allow_pickle


def load_archive(
    path: AnyPath,
    what: str,
    formats: tuple[str, Collection[int]],
    names: Collection[str],
    optional: Collection[str] = (),
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata of an archive. Nothing in it is executed.

    Args:
        what: content of the file, for the message.
        formats: expected "format" and versions.
        names, optional: entries that must be, and may be, in the archive.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is truncated, of another format, or an entry is missing; the message names
            the file and the entry.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of {what}")
    entry = "the archive"
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an .npz archive, or truncated")
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in (*names, "metadata") if name not in archive.files]
            if missing:
                entry = missing[0]
                raise ValueError("missing")
            arrays: dict[str, np.ndarray] = {}
            for entry in (*names, *(n for n in optional if n in archive.files), "metadata"):
                arrays[entry] = archive[entry]
    # A corrupt or hostile file makes the readers of zip and npy raise errors of a dozen kinds.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: {entry} cannot be read ({reason})") from None
    try:
        text = arrays.pop("metadata").astype(np.uint8, casting="safe").tobytes()
        metadata = json.loads(text.decode())
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{path}: metadata is not JSON text as uint8") from None
    name, versions = formats
    if not isinstance(metadata, dict) or metadata.get("format") != name:
        raise ValueError(f"{path}: it is another file: metadata lacks the format {name!r}")
    if metadata.get("version") not in versions:
        known = " and ".join(map(str, versions))
        raise ValueError(
            f"{path}: version {metadata.get('version')!r} of the format; expected {known}"
        )
    return arrays, metadata
