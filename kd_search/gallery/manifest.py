"""The manifest of a gallery: its network, its rules, and which generation of files is valid."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from kd_search.utils.files import PathLike, read_json, write_json

#: Name of the manifest; a folder with it is a gallery.
MANIFEST = "gallery.json"
_FORMAT, _VERSION = "kd_search gallery", 1
_GENERATION = re.compile(r"generation-(\d{6})")


class GalleryError(ValueError):
    """A gallery cannot be used as asked; one line that names the folder, file or option."""


@dataclass(frozen=True)
class Manifest:
    """Content of ``gallery.json``.

    Args:
        model_sha256: hash of the network's file: embeddings of two networks cannot be compared.
        model: its file name, for messages.
        embedding_dim: D.
        rules: how camera and time are found, see :class:`kd_search.gallery.capture.CaptureRules`.
        retention_days: pictures older than that are removed by every indexing; ``None`` keeps all.
        generation: number of the folder with the valid files. Compaction writes the next one, and
            replacing the manifest switches to it.
        created: local time.
    """

    model_sha256: str
    model: str
    embedding_dim: int
    rules: Mapping[str, Any] = field(default_factory=dict)
    retention_days: Optional[float] = None
    generation: int = 1
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))

    def check_model(self, folder: PathLike, sha256: str, name: str) -> None:
        """Raise :class:`GalleryError` if the embeddings of another network are in the gallery."""
        if sha256 != self.model_sha256:
            raise GalleryError(
                f"{folder}: was indexed with {self.model} (sha256 {self.model_sha256[:12]}), not "
                f"with {name} ({sha256[:12]}): use that network, or index into another gallery"
            )


def is_gallery(folder: PathLike) -> bool:
    """Whether a folder holds a gallery."""
    return os.path.isfile(os.path.join(folder, MANIFEST))


def read_manifest(folder: PathLike) -> Manifest:
    """Read and check ``gallery.json``.

    Raises:
        GalleryError: there is none, it is damaged, or of a newer version.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        value = read_json(path, "gallery (kd-search index makes one)", sealed=True)
    except OSError as error:
        raise GalleryError(str(error)) from None
    except ValueError as error:
        raise GalleryError(f"{error}; restore it from a copy") from None
    names = {"format", "version", *Manifest.__dataclass_fields__}
    # read_json accepts a file without a checksum, and removes the checksum: the exact keys must be
    # there, and the checksum too, so that no damaged byte passes.
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise GalleryError(f"{path}: not the manifest of a gallery")
    if value.get("version") != _VERSION:
        raise GalleryError(
            f"{path}: version {value.get('version')!r}, this kd_search reads {_VERSION}: update it"
        )
    if value.keys() != names or "sha256" not in read_json(path):
        raise GalleryError(f"{path}: is damaged or was edited; restore it from a copy")
    return Manifest(**{key: value[key] for key in Manifest.__dataclass_fields__})


def write_manifest(folder: PathLike, manifest: Manifest) -> None:
    """Replace ``gallery.json`` atomically."""
    value = {"format": _FORMAT, "version": _VERSION, **asdict(manifest)}
    write_json(os.path.join(folder, MANIFEST), value, sealed=True)


def generation_folder(folder: PathLike, generation: int) -> Path:
    """The folder of a generation."""
    return Path(folder) / f"generation-{generation:06d}"


def remove_other_generations(folder: PathLike, generation: int) -> None:
    """Remove what a compaction left behind that was interrupted before or after its switch."""
    for entry in os.scandir(folder):
        found = _GENERATION.fullmatch(entry.name)
        if found and int(found[1]) != generation:
            shutil.rmtree(entry.path)
