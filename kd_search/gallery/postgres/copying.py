"""Copying a gallery of a folder into a database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from ..database import FileRow
from ..removal import are_forgotten
from ..search import Gallery
from .writer import PostgresWriter

#: Files of a commit; what a kill loses is copied again.
_FILES = 256


@dataclass
class PushReport:
    """What was copied."""

    files: int = 0
    #: The database had them already.
    unchanged: int = 0
    copied: int = 0
    people: int = 0
    #: Files and people that must not be in the database.
    do_not_index: int = 0
    do_not_index_people: int = 0
    #: Files that were removed since the gallery has forgotten them.
    forgotten: int = 0


def push(
    source: Gallery,
    target: PostgresWriter,
    progress: Optional[Callable[[int, int, PushReport], None]] = None,
) -> PushReport:
    """Copy what the database does not have, or has in another state.

    It may be interrupted at any moment and called again: a commit takes whole files, and files that
    are equal in both are left alone. What the gallery has forgotten is removed from the database,
    and what the database has forgotten is not copied. Other files of the database stay, so that
    several galleries of the same network can be copied into one. Ids of people are the database's
    own.

    Args:
        source: the gallery.
        target: of the database.
        progress: called with the number of files that were looked at, of all, and the report.

    Raises:
        GalleryError: the embeddings are of another network, or the database cannot be written;
            what was committed stays.
    """
    target.manifest.check_model(target.folder, source.manifest.model_sha256, source.manifest.model)
    tables, report = source.tables(), PushReport()
    files = sorted(tables.files)
    report.files = len(files)
    report.forgotten = target.take_forgotten(tables.do_not_index)
    for start in range(0, len(files), _FILES):
        batch = files[start : start + _FILES]
        _copy_batch(source, target, batch, report)
        if progress is not None:
            progress(start + len(batch), len(files), report)
    return report


def _copy_batch(
    source: Gallery, target: PostgresWriter, batch: Sequence[FileRow], report: PushReport
) -> None:
    there = target.files_at([file.path for file in batch])
    forgotten = target.forgotten_of([file.sha256 for file in batch])
    new: list[tuple[FileRow, np.ndarray, np.ndarray]] = []
    for file in batch:
        found = source.people_of(file)
        if found is None:
            continue  # written since; the next call copies it
        embeddings, people = found
        boxes = forgotten[file.sha256]
        if boxes is None:
            report.do_not_index += 1
            continue
        again = are_forgotten(people, boxes)
        embeddings, people = embeddings[~again], people[~again]
        report.do_not_index_people += int(again.sum())
        file = file._replace(segment=0, start=0, count=len(people))
        old = there.get(file.path)
        if old is not None and _state(old) == _state(file):
            report.unchanged += 1
            continue
        new.append((file, people, embeddings))
    if new:
        target.copy(new)
    report.copied += len(new)
    report.people += sum(len(people) for _, people, _ in new)


def _state(file: FileRow) -> FileRow:
    """A file without the numbers that each store gives."""
    return file._replace(id=0, content=0)
