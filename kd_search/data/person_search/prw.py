"""Query files in the format of PRW's ``query_info.txt``: one query a line."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from kd_search.data.io.files import read_lines
from kd_search.data.person_search.id_map import IDMap, OriginalID, is_labelled
from kd_search.data.records import Record, clip_box, has_area, xyxy

_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class QueryLine:
    """One line of a query file."""

    #: Line number from 1, for messages.
    line: int
    #: Original id of the person as written.
    person_id: str
    #: XYXY, absolute pixels, as written (may stick out of the frame).
    bbox: list[float]
    #: Name of the frame, with or without its extension.
    frame: str


def read_query_info(query_info_file: str) -> list[QueryLine]:
    """Read lines ``pid x y w h frame``; blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another form (the message has its number), or there is no query.
    """
    lines = read_lines(query_info_file, "query file")
    queries = [_parse(text, number, query_info_file) for number, text in lines]
    if not queries:
        raise ValueError(f"{query_info_file}: holds no query")
    return queries


def query_person_ids(queries: Iterable[QueryLine], ids: Iterable[OriginalID]) -> list[OriginalID]:
    """Original ids of the queries: integers, unless the ids of the split are strings.

    Args:
        queries: lines of the query file.
        ids: original ids of the split's annotations.
    """
    textual = any(isinstance(original, str) for original in ids)
    return [
        query.person_id
        if textual or not _INTEGER.fullmatch(query.person_id)
        else int(query.person_id)
        for query in queries
    ]


def attach_queries(
    dicts: list[Record], query_info_file: str, id_map: IDMap, *, clip: bool = True
) -> list[Record]:
    """Add the queries of a file to the dataset dicts of their frames, in place.

    Each becomes ``{"query_id": int, "bbox": XYXY in absolute pixels, "person_id": row}`` in the
    list ``queries`` of its dict; ``query_id`` counts the queries in the order of the file.

    Args:
        dicts: dataset dicts of the test set.
        query_info_file: text file in PRW's format, see :func:`read_query_info`.
        id_map: id map of the test set, with the id of every query.
        clip: clip the boxes to their frame.

    Returns:
        ``dicts``.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_query_info`; or the frame of a query is not
            in the set or ambiguous, its id is not in the map, or its box lies outside of its frame.
            The message has the file and the line.
    """
    queries = read_query_info(query_info_file)
    originals = query_person_ids(queries, id_map.to_list())
    frames = _FrameIndex(dicts)
    for query_id, (query, original) in enumerate(zip(queries, originals)):
        where = f"{query_info_file}, line {query.line}"
        record = frames.find(query.frame, where)
        row = id_map.row(original)
        if row < 0:
            raise ValueError(f"{where}: person id {query.person_id!r} is not an id of this set")
        box = query.bbox
        if clip:
            box = clip_box(box, record["width"], record["height"])
            if not has_area(box):
                raise ValueError(f"{where}: the box lies outside of frame {query.frame}")
        record.setdefault("queries", []).append(
            {"query_id": query_id, "bbox": box, "person_id": row}
        )
    return dicts


class _FrameIndex:
    """Index of dataset dicts by frame name, with or without folder and extension."""

    def __init__(self, dicts: list[Record]) -> None:
        self._by_name: dict[str, list[Record]] = defaultdict(list)
        for record in dicts:
            name = os.path.basename(record["file_name"])
            for key in {name, os.path.splitext(name)[0]}:
                self._by_name[key].append(record)

    def find(self, frame: str, where: str) -> Record:
        frame = frame.replace("\\", "/")
        found = self._by_name.get(os.path.basename(frame), [])
        if len(found) > 1 or "/" in frame:
            paths = [(r, "/" + r["file_name"].replace("\\", "/")) for r in found]
            ends = ("/" + frame,)
            found = [
                r for r, p in paths if p.endswith(ends) or os.path.splitext(p)[0].endswith(ends)
            ]
        if len(found) != 1:
            problem = f"{len(found)} frames of this set are" if found else "no frame of this set is"
            raise ValueError(f"{where}: {problem} named {frame!r}")
        return found[0]


def _parse(text: str, line: int, query_info_file: str) -> QueryLine:
    where = f"{query_info_file}, line {line}"
    parts = text.split(None, 5)
    if len(parts) != 6:
        raise ValueError(f"{where}: expected 'pid x y w h frame', got {text!r}")
    try:
        box = [float(part) for part in parts[1:5]]
    except ValueError:
        box = [math.nan]
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{where}: x y w h must be four finite numbers, got {text!r}")
    person_id = parts[0]
    if _INTEGER.fullmatch(person_id) and not is_labelled(int(person_id)):
        raise ValueError(f"{where}: a query needs the id of a person, got {person_id}")
    return QueryLine(line, person_id, xyxy(box), parts[5])
