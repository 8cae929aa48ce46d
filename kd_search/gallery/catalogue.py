"""The files of a gallery as arrays: what searches need of them, and a cache that opens at once."""

import json
import os
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Optional

import numpy as np

from kd_search.utils.files import atomic_write

from .database import FileRow, Tables, row_checksum
from .segments import Block

CATALOGUE = "catalogue.cache"
#: Fewer files are read from the database in no time.
_WORTH_IT = 2000
_MAGIC = b"kd_search catalogue 1\n"


@dataclass
class Catalogue:
    """Arrays with an element for each file, in the order of their ids.

    It is made of the database after all of its rows were compared with their checksum, and holds
    the checksum of each: a row that is fetched later is the same one.
    """

    id: np.ndarray
    checksum: np.ndarray
    content: np.ndarray
    segment: np.ndarray
    start: np.ndarray
    count: np.ndarray
    #: Place of the name in ``cameras``; -1 for none.
    camera: np.ndarray
    #: NaN if unknown.
    time: np.ndarray
    #: Place of the name in ``folder_names``.
    folder: np.ndarray
    #: Removed rows, (N, 2): segment and row.
    dead: np.ndarray
    #: (N, 5) as :class:`Block`.
    block: np.ndarray
    cameras: list[str]
    folder_names: list[str]

    @classmethod
    def of(cls, tables: Tables) -> "Catalogue":
        """Make a catalogue of all rows of a database."""
        files = sorted(tables.files)
        cameras = sorted({row.camera for row in files if row.camera is not None})
        codes: dict[Optional[str], int] = {name: code for code, name in enumerate(cameras)}
        folders: dict[str, int] = {}
        folder = [folders.setdefault(os.path.dirname(row.path), len(folders)) for row in files]

        def column(name: str, dtype: type) -> np.ndarray:
            place = FileRow._fields.index(name)
            return np.array([row[place] for row in files], dtype)

        return cls(
            column("id", np.int64),
            np.array([row_checksum(row) for row in files], np.uint32),
            column("content", np.int64),
            column("segment", np.int64),
            column("start", np.int64),
            column("count", np.int64),
            np.array([-1 if r.camera is None else codes[r.camera] for r in files], np.int32),
            np.array([np.nan if row.time is None else row.time for row in files], np.float64),
            np.array(folder, np.int32),
            np.array(tables.dead, np.int64).reshape(-1, 2),
            np.array(tables.blocks, np.int64).reshape(-1, len(Block._fields)),
            cameras,
            list(folders),
        )

    @property
    def blocks(self) -> list[Block]:
        return [Block(*values) for values in self.block.tolist()]

    def write(self, folder: Path, version: int, total: int) -> None:
        """Keep it for :func:`read_catalogue` beside the database, unless it is small.

        Args:
            folder: of the generation.
            version, total: of the database that it was made of.
        """
        if len(self.id) < _WORTH_IT:
            return
        head = {
            "version": version,
            "total": total,
            "cameras": self.cameras,
            "folder_names": self.folder_names,
            "arrays": [(name, a.dtype.str, a.shape) for name, a in self._arrays()],
        }
        text = json.dumps(head).encode()
        content = b"".join([text, b"\n", *(array.tobytes() for _, array in self._arrays())])
        with atomic_write(folder / CATALOGUE) as file:
            file.write(_MAGIC + zlib.crc32(content).to_bytes(4, "little") + content)

    def _arrays(self) -> list[tuple[str, np.ndarray]]:
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [(name, value) for name, value in values if isinstance(value, np.ndarray)]


def read_catalogue(folder: Path, version: int, total: int) -> Optional[Catalogue]:
    """Read a catalogue; ``None`` if it is missing, damaged or of another state of the database."""
    try:
        content = (folder / CATALOGUE).read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + 4
    checksum = zlib.crc32(memoryview(content)[start:])
    if content[:start] != _MAGIC + checksum.to_bytes(4, "little"):
        return None
    end = content.index(b"\n", start)
    head = json.loads(content[start:end])
    if (head["version"], head["total"]) != (version, total):
        return None
    values, place = {}, end + 1
    for name, dtype, shape in head["arrays"]:
        count = int(np.prod(shape))
        values[name] = np.frombuffer(content, dtype, count, place).reshape(shape)
        place += values[name].nbytes
    return Catalogue(cameras=head["cameras"], folder_names=head["folder_names"], **values)
