"""PRW's ``query_info.txt``: the queries of a test set, one line each."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional

from kd_search.data.person_search.coco_json import clip_box
from kd_search.data.person_search.id_map import IDMap, OriginalID, is_labelled

_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class QueryLine:
    """One line of a query file."""

    #: Line number, from 1, for messages.
    line: int
    #: Original id of the person as written.
    person_id: str
    #: XYXY, absolute pixels, as written (may stick out of the frame).
    bbox: tuple[float, float, float, float]
    #: Name of the frame, with or without its extension.
    frame: str


def read_query_info(query_info_file: str) -> list[QueryLine]:
    """Read lines ``pid x y w h frame``; either line end, blank lines skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another form (named), or the file holds no query.
    """
    try:
        with open(query_info_file, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{query_info_file}: no such query file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{query_info_file}: not a text file ({error})") from None
    queries = [_parse(text, n, query_info_file) for n, text in enumerate(lines, 1) if text.strip()]
    if not queries:
        raise ValueError(f"{query_info_file}: holds no query")
    return queries


def query_person_ids(queries: Iterable[QueryLine], ids: Iterable[OriginalID]) -> list[OriginalID]:
    """Original ids of the queries, numbers as numbers unless the split names people by strings.

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
    dicts: list[dict[str, Any]], query_info_file: str, id_map: IDMap, *, clip: bool = True
) -> list[dict[str, Any]]:
    """Put the queries of a file onto the dataset dicts of their frames, in place.

    Each becomes ``{"query_id": int, "bbox": XYXY in absolute pixels, "person_id": row}`` in the
    list ``queries`` of its dict; ``query_id`` counts the queries in the order of the file.

    Args:
        dicts: dataset dicts of the test set.
        query_info_file: text file in PRW's format, see :func:`read_query_info`.
        id_map: id map of the test set; it must know every query's id.
        clip: clip the boxes to their frame.

    Returns:
        ``dicts``.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_query_info`; or a query's frame is not in
            the set or not told apart by its name, its id is not in the map, or its box lies
            outside of its frame. The message names the file and the line.
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
        box = list(query.bbox)
        if clip:
            box = clip_box(box, record["width"], record["height"])
            if box[2] <= box[0] or box[3] <= box[1]:
                raise ValueError(f"{where}: the box lies outside of frame {query.frame}")
        record.setdefault("queries", []).append(
            {"query_id": query_id, "bbox": box, "person_id": row}
        )
    return dicts


class _FrameIndex:
    """Finds dataset dicts by frame name, with or without folder and extension."""

    def __init__(self, dicts: list[dict[str, Any]]) -> None:
        self._by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for record in dicts:
            name = os.path.basename(record["file_name"])
            for key in {name, os.path.splitext(name)[0]}:
                self._by_name[key].append(record)

    def find(self, frame: str, where: str) -> dict[str, Any]:
        frame = frame.replace("\\", "/")
        found = self._by_name.get(os.path.basename(frame), [])
        if len(found) > 1 or "/" in frame:
            found = [r for r in found if _ends_with_path(r["file_name"], frame)]
        if len(found) != 1:
            problem = f"{len(found)} frames of this set are" if found else "no frame of this set is"
            raise ValueError(f"{where}: {problem} named {frame!r}")
        return found[0]


def _ends_with_path(file_name: str, frame: str) -> bool:
    path = "/" + file_name.replace("\\", "/")
    return path.endswith("/" + frame) or os.path.splitext(path)[0].endswith("/" + frame)


def _parse(text: str, line: int, query_info_file: str) -> QueryLine:
    where = f"{query_info_file}, line {line}"
    parts = text.strip().split(None, 5)
    if len(parts) != 6:
        raise ValueError(f"{where}: expected 'pid x y w h frame', got {text.strip()!r}")
    box = _numbers(parts[1:5])
    if box is None:
        raise ValueError(f"{where}: x y w h must be four finite numbers, got {text.strip()!r}")
    person_id = parts[0]
    if _INTEGER.fullmatch(person_id) and not is_labelled(int(person_id)):
        raise ValueError(f"{where}: a query needs the id of a person, got {person_id}")
    x, y, w, h = box
    return QueryLine(line, person_id, (x, y, x + w, y + h), parts[5])


def _numbers(parts: list[str]) -> Optional[list[float]]:
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    return values if all(abs(value) < float("inf") for value in values) else None
