"""Rewriting a gallery without the rows that were removed."""

import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Optional

import numpy as np

from .database import Change, Database, Tables
from .segments import (
    SEGMENT_ROWS,
    Group,
    Place,
    SegmentReader,
    SegmentWriter,
    people_file,
    rows_file,
    split,
    valid_rows,
)


def write_generation(source: Path, target: Path, tables: Tables, embedding_dim: int) -> None:
    """Write all that is valid to another folder.

    Segments that lost nothing are linked, where the file system can, unless they are small. The
    others are compared with their checksums and copied without what was removed.

    Args:
        source: folder of a generation.
        target: empty folder on the same disk.
        tables: of the generation.
        embedding_dim: D.

    Raises:
        GalleryError: a segment to copy is damaged.
    """
    places = defaultdict(set)
    for file in tables.files:
        if file.place is not None:
            places[file.segment].add(file.place)
    dead = defaultdict(list)
    for entry in tables.dead:
        dead[entry.segment].append(entry.row)
    linked, copied = {}, []
    for segment, rows in valid_rows(tables.blocks, source).items():
        whole = sum(place.count for place in places[segment]) == rows and not dead[segment]
        if whole and rows > SEGMENT_ROWS // 2:
            linked[segment] = rows
            for name in (rows_file, people_file):
                _link(name(source, segment), name(target, segment))
        elif places[segment]:
            copied.append(segment)
    change = Change()
    change.add.blocks = [block for block in tables.blocks if block.segment in linked]
    change.add.do_not_index = tables.do_not_index
    change.add.next_id = tables.next_id
    writer = SegmentWriter(target, embedding_dim, linked, append=False)
    moved: dict[Place, Optional[Place]] = {}
    for segment in copied:
        blocks = [block for block in tables.blocks if block.segment == segment]
        reader = SegmentReader(source, segment, embedding_dim, blocks)
        of_segment = sorted(places[segment])
        groups = [_group(reader, place, dead[segment]) for place in of_segment]
        new: list[Optional[Place]] = []
        for part in split(groups, SEGMENT_ROWS):
            part_places, part_blocks = writer.append(part)
            writer.keep(part_blocks)
            new += part_places
            change.add.blocks += part_blocks
        moved.update(zip(of_segment, new))
    for file in tables.files:
        if file.place in moved:
            segment, start, count = moved[file.place] or (0, 0, 0)
            file = file._replace(segment=segment, start=start, count=count)
        change.add.files.append(file)
    database = Database(target, create=True)
    try:
        database.commit(change, tables.version)
    finally:
        database.close()


def _group(reader: SegmentReader, place: Place, dead: list[int]) -> Group:
    """The rows of a place that are not dead; a view where that is all."""
    span = slice(place.start, place.start + place.count)
    inside = [row for row in dead if span.start <= row < span.stop]
    if not inside:
        return reader.rows[span], reader.people[span]
    keep = np.setdiff1d(np.arange(span.start, span.stop), inside)
    return reader.rows[keep], reader.people[keep]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())
