"""Writing to a gallery: adding, removing, forgetting and compaction.

The files of a gallery:

    gallery.json              manifest, names the valid generation
    generation-000001/
        gallery.sqlite        files, where their rows are, what must not be indexed again
        catalogue.cache       the files as arrays, so that a large gallery opens at once
        rows-000001.f32       embeddings
        people-000001.bin     box, score, frame of each
"""

import contextlib
import os
import shutil
import sys
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np

from kd_search.utils.files import PathLike, sync_folder
from kd_search.utils.folder_lock import LOCK_FILE, hold_folder, release_folder

from .catalogue import Catalogue
from .compaction import write_generation
from .database import (
    UNREADABLE,
    Change,
    Database,
    DeadRow,
    FileRow,
    Forgotten,
    Tables,
)
from .manifest import (
    MANIFEST,
    GalleryError,
    Manifest,
    generation_folder,
    is_gallery,
    read_manifest,
    remove_other_generations,
    write_manifest,
)
from .new_file import NewFile
from .segments import (
    PEOPLE,
    Place,
    SegmentWriter,
    read_people,
    valid_rows,
)

#: Share of removed rows from which on compaction is worth its time.
_WORTH_IT = 0.25


class GalleryWriter:
    """The only writer of a gallery; a context manager.

    What :meth:`add`, :meth:`remove` and :meth:`forget` were given is acknowledged when they return:
    it survives the end of the process and of the machine. Nothing of a call that did not return is
    visible to anybody.
    """

    def __init__(self, folder: PathLike, create: Optional[Manifest] = None):
        """
        Args:
            folder: of the gallery.
            create: the manifest of a new gallery, if the folder holds none.

        Raises:
            GalleryError: there is no gallery, or it is damaged.
            FolderInUseError: another process writes to it.
        """
        self.folder, self._changed = Path(folder), False
        if create is None and not is_gallery(folder):
            read_manifest(folder)
        hold_folder(folder)
        try:
            if create is not None and not is_gallery(folder):
                self._create(create)
            self.manifest = read_manifest(folder)
            remove_other_generations(folder, self.manifest.generation)
            self._open()
        except BaseException:
            release_folder(folder)
            raise

    def __enter__(self) -> "GalleryWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the gallery."""
        try:
            if self._changed and not self._failed:
                tables = self._database.load()
                with contextlib.suppress(OSError):  # a full disk: it is a cache
                    catalogue = Catalogue.of(tables)
                    catalogue.write(self._segments.folder, tables.version, tables.total)
        finally:
            self._database.close()
            release_folder(self.folder)

    def set_options(self, rules: Mapping[str, Any], retention_days: Optional[float]) -> None:
        """Keep rules and retention for later runs."""
        manifest = replace(self.manifest, rules=dict(rules), retention_days=retention_days)
        if manifest != self.manifest:
            write_manifest(self.folder, manifest)
            self.manifest = manifest

    # -- what is in it ---------------------------------------------------------------------------

    @property
    def clock(self) -> float:
        """When it was last written to, seconds since 1970."""
        return self.tables.clock

    def file(self, path: str) -> Optional[FileRow]:
        """State of a file that was looked at before."""
        return self._by_path.get(path)

    def files_at(self, paths: Sequence[str]) -> dict[str, FileRow]:
        """States of many files, by their paths."""
        return {path: self._by_path[path] for path in paths if path in self._by_path}

    def content(self, sha256: str) -> Optional[FileRow]:
        """A file with that content that could be read."""
        files = self._by_content.get(sha256)
        return next(iter(files.values())) if files else None

    def files(self) -> Iterable[FileRow]:
        """Every file."""
        return self._by_path.values()

    def forgotten(self, sha256: str) -> Optional[list[tuple[float, float, float, float]]]:
        """Boxes of people in that content that must not be indexed; ``None``: nothing of it may."""
        entries = self._forgotten.get(sha256, [])
        if any(entry.x0 is None for entry in entries):
            return None
        return [(e.x0, e.y0, e.x1, e.y1) for e in entries]  # type: ignore[misc]

    def people(self, file: FileRow) -> np.ndarray:
        """(N,) of :data:`~kd_search.gallery.segments.PEOPLE`, the people of a file with rows."""
        if file.place is None:
            return np.zeros(0, PEOPLE)
        records = read_people(self._segments.folder, self.tables.blocks, file.place)
        dead = [e.row - file.start for e in self.tables.dead if e.segment == file.segment]
        return np.delete(records, [row for row in dead if 0 <= row < file.count])

    @property
    def rows(self) -> int:
        """Rows that a search can find."""
        return _rows_of(self._places(), self.tables.dead)

    @property
    def rows_to_remove(self) -> int:
        """Rows that no search finds any more and that compaction will remove."""
        return sum(self._segments.ends.values()) - self.rows

    # -- changes ---------------------------------------------------------------------------------

    def add(self, new: Sequence[NewFile]) -> None:
        """Add files, or replace those of the same paths, in one commit.

        Raises:
            ValueError: embeddings are not finite or not of unit length; names the file.
            GalleryError, OSError: it could not be written; nothing was added.
        """
        for file in new:
            file.check(self.manifest.embedding_dim)
        groups = [
            self._nothing if f.embeddings is None or f.people is None else (f.embeddings, f.people)
            for f in new
        ]
        change = Change(self._tables())
        try:
            places, change.add.blocks = self._segments.append(groups)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._segments.cut()
            if isinstance(error, OSError):
                raise _no_space(self.folder, error) from None
            raise
        for file, place in zip(new, places):
            old = self._by_path.get(file.path)
            if old is not None:
                change.remove.append(old)
            known = self.content(file.sha256)
            change.add.files.append(file.row(change.add.next_id, known, place))
            change.add.next_id += 1
        self._commit(change)

    def remove(self, files: Sequence[FileRow], *, for_good: bool = False) -> None:
        """Remove files in one commit; indexing finds them again.

        Args:
            files: of the gallery.
            for_good: the bytes must be gone after the next :meth:`compact`, also if it is the one
                of a later run.
        """
        change = Change(self._tables(), list(files))
        change.add.pending |= for_good and bool(files)
        self._commit(change)

    def forget(
        self, contents: Iterable[str], people: Iterable[tuple[FileRow, int]] = ()
    ) -> tuple[int, int]:
        """Remove content, or people in it, that must not be indexed again, in one commit.

        The bytes are gone from the disk after :meth:`compact`.

        Args:
            contents: SHA-256 of files, in the gallery or not.
            people: a file and the number of a person in it.

        Returns:
            Numbers of removed files and removed rows.
        """
        change = Change(self._tables())
        contents, now = set(contents), time.time()
        for sha256 in sorted(contents):
            change.add.do_not_index.append(Forgotten(sha256, None, None, None, None, now))
            change.remove += self._by_content.get(sha256, {}).values()
        dead = set(self.tables.dead)
        rows = _rows_of({f.place for f in change.remove if f.place is not None}, dead)
        for file, person in people:
            if file.sha256 in contents or file.place is None:
                continue
            records = read_people(self._segments.folder, self.tables.blocks, file.place)
            for row in np.flatnonzero(records["person"] == person):
                entry = DeadRow(file.segment, file.start + int(row))
                if entry not in dead:
                    dead.add(entry)
                    change.add.dead.append(entry)
                    x0, y0, x1, y1 = records["box"][row].tolist()
                    change.add.do_not_index.append(Forgotten(file.sha256, x0, y0, x1, y1, now))
        change.add.pending |= bool(change)
        self._commit(change)
        return len(change.remove), rows + len(change.add.dead)

    def compact(self, *, if_worth_it: bool = False) -> int:
        """Rewrite the gallery without the removed rows, and switch to the new files at once.

        Afterwards no file of the gallery has a byte of what was removed. Segments that lost nothing
        are linked, not copied. Readers keep the old files until they look for changes.

        Args:
            if_worth_it: do nothing while few rows were removed, and none that must be gone.

        Returns:
            Number of removed rows.
        """
        removed = self.rows_to_remove
        few = removed <= _WORTH_IT * (self.rows + removed)
        if if_worth_it and few and not self.tables.pending:
            return 0
        generation = self.manifest.generation + 1
        target = generation_folder(self.folder, generation)
        try:
            target.mkdir()
            tables = replace(self.tables, files=list(self._by_path.values()))
            write_generation(self._segments.folder, target, tables, self.manifest.embedding_dim)
            sync_folder(target)
            sync_folder(self.folder)
        except BaseException as error:
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, OSError):
                raise _no_space(self.folder, error) from None
            raise
        manifest = replace(self.manifest, generation=generation)
        write_manifest(self.folder, manifest)
        self._database.close()
        self.manifest, self._changed = manifest, True
        remove_other_generations(self.folder, generation)
        self._open()
        return removed

    # -- inside ----------------------------------------------------------------------------------

    def _create(self, manifest: Manifest) -> None:
        folder = generation_folder(self.folder, manifest.generation)
        if any(entry.name not in (LOCK_FILE, "new") for entry in os.scandir(self.folder)):
            raise GalleryError(
                f"{self.folder}: is not empty and has no {MANIFEST}: name a new folder, or restore "
                "that file from a copy"
            )
        # An interrupted creation leaves no manifest, and so no gallery: it is made in a folder that
        # is not a generation yet.
        draft = self.folder / "new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        Database(draft, create=True).close()
        sync_folder(draft)
        os.replace(draft, folder)
        try:
            write_manifest(self.folder, manifest)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _open(self) -> None:
        folder = generation_folder(self.folder, self.manifest.generation)
        self._database, self._failed = Database(folder), False
        self.tables = self._database.load()
        ends = valid_rows(self.tables.blocks, self._database.path)
        self._segments = SegmentWriter(folder, self.manifest.embedding_dim, ends)
        self._nothing = (
            np.zeros((0, self.manifest.embedding_dim), np.float32),
            np.zeros(0, PEOPLE),
        )
        self._by_path = {row.path: row for row in self.tables.files}
        self._by_content: dict[str, dict[str, FileRow]] = defaultdict(dict)
        self._forgotten: dict[str, list[Forgotten]] = defaultdict(list)
        for row in self.tables.files:
            self._note(row)
        for entry in self.tables.do_not_index:
            self._forgotten[entry.sha256].append(entry)

    def _note(self, row: FileRow) -> None:
        self._by_path[row.path] = row
        if row.state != UNREADABLE:
            self._by_content[row.sha256][row.path] = row

    def _tables(self) -> Tables:
        return Tables(next_id=self.tables.next_id, pending=self.tables.pending)

    def _commit(self, change: Change) -> None:
        if not change:
            return
        if self._failed:
            raise GalleryError(f"{self.folder}: a commit failed: open the gallery again")
        self._failed = True  # whether the disk has it is not known after an error
        self._database.commit(change, self.tables.version)
        self._failed, self._changed = False, True
        self.tables.version += 1
        self.tables.next_id, self.tables.pending = change.add.next_id, change.add.pending
        self._segments.keep(change.add.blocks)
        self.tables.blocks += change.add.blocks
        self.tables.dead += change.add.dead
        for row in change.remove:
            del self._by_path[row.path]
            self._by_content[row.sha256].pop(row.path, None)
            if not self._by_content[row.sha256]:
                del self._by_content[row.sha256]
        for row in change.add.files:
            self._note(row)
        for entry in change.add.do_not_index:
            self._forgotten[entry.sha256].append(entry)
        self.tables.do_not_index += change.add.do_not_index

    def _places(self) -> set[Place]:
        return {row.place for row in self._by_path.values() if row.place is not None}


def _rows_of(places: Collection[Place], dead: Collection[DeadRow]) -> int:
    """Rows of places that do not overlap, without those that are dead."""
    rows, ordered = sum(place.count for place in places), sorted(places) if dead else []
    for segment, row in dead:
        index = bisect_right(ordered, (segment, row, sys.maxsize)) - 1
        if index >= 0:
            place = ordered[index]
            rows -= place.segment == segment and row < place.start + place.count
    return rows


def _no_space(folder: Path, error: OSError) -> GalleryError:
    return GalleryError(
        f"{folder}: cannot be written ({error.strerror or error}); free space on the disk and run "
        "it again: what was acknowledged is safe"
    )
