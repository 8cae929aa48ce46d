"""What the writers of all formats share."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Union

from detectron2.data import MetadataCatalog

from kd_search.data.person_search.id_map import IDMap
from kd_search.data.person_search.register import (
    get_person_search_dicts,
    locate_split,
    registered_id_space,
)
from kd_search.data.person_search.split import Galleries
from kd_search.utils.files import atomic_write, write_json


@dataclass(frozen=True)
class SplitContent:
    """A split that is to be written, as its loader gives it."""

    name: str
    dicts: list[dict[str, Any]]
    id_map: IDMap
    #: Folder that image names are relative to; names keep no folder where it is empty.
    image_root: str = ""
    galleries: Optional[Galleries] = None
    id_space: Optional[str] = None
    #: Names of the people in row order, where the format has them besides the ids.
    person_names: Optional[tuple[str, ...]] = None

    @classmethod
    def from_name(cls, name: str) -> "SplitContent":
        """Load a registered set.

        Raises:
            FileNotFoundError, ValueError: it is missing, broken or not registered.
        """
        dicts, id_map = get_person_search_dicts(name)
        files = locate_split(name)
        metadata = MetadataCatalog.get(name)
        return cls(
            name,
            dicts,
            id_map,
            files.image_root if files is not None else "",
            metadata.get("search_galleries"),
            registered_id_space(name),
            metadata.get("person_names"),
        )

    @property
    def queries(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Queries and the dicts of their images, in the order of the query ids."""
        pairs = [(q, record) for record in self.dicts for q in record.get("queries", ())]
        return sorted(pairs, key=lambda pair: pair[0]["query_id"])

    def relative_names(self) -> list[str]:
        """Name of each image below ``image_root``, with forward slashes."""
        names = []
        for record in self.dicts:
            name = os.path.basename(record["file_name"])
            if self.image_root:
                relative = os.path.relpath(record["file_name"], self.image_root)
                name = name if relative.startswith("..") else relative
            names.append(name.replace(os.sep, "/"))
        return names


class ImageFolder:
    """Puts images into the folders of a new data set, as hard links where that can be done.

    Args:
        copy: copy them, so that the new files can be changed without touching the old ones.
    """

    def __init__(self, copy: bool = False) -> None:
        self._copy = copy
        self.linked = 0
        self.copied = 0

    def put(self, source: str, target: Union[str, Path]) -> None:
        """Make ``target`` the image ``source``.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: ``target`` is there already.
        """
        if not os.path.isfile(source):
            raise FileNotFoundError(f"{source}: no such image file")
        if os.path.lexists(target):
            raise ValueError(
                f"{source}: another image is already called {os.path.basename(target)}"
            )
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not self._copy:
            # Another file system, or one without hard links.
            with contextlib.suppress(OSError):
                os.link(os.path.realpath(source), target)
                self.linked += 1
                return
        shutil.copyfile(source, target)
        self.copied += 1


@contextlib.contextmanager
def new_folder(path: Union[str, Path]) -> Iterator[Path]:
    """A folder beside ``path`` that takes its name if the block ends without an error.

    Raises:
        ValueError: ``path`` is there already and is no empty folder.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is there already: choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name per target: what a killed run left behind is removed by the next one.
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def xywh(box: Sequence[float]) -> list[float]:
    """x, y, w, h of an XYXY box, whole numbers as int."""
    x0, y0, x1, y1 = (float(value) for value in box)
    values = (x0, y0, x1 - x0, y1 - y0)
    return [int(value) if value.is_integer() else value for value in values]


def is_crowd(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


def person_numbers(
    train: Optional[SplitContent], test: Optional[SplitContent]
) -> tuple[list[int], list[int]]:
    """A number for each row of both splits, different people having different ones.

    The original ids are kept where they are numbers, and no number is in both splits unless these
    count people together; else the people are numbered from 1 on.
    """
    splits = [split for split in (train, test) if split is not None]
    originals = [split.id_map.to_list() for split in splits]
    together = train is None or test is None or train.id_space == test.id_space
    numbers = all(isinstance(original, int) for ids in originals for original in ids)
    if not numbers or not (together or not set(originals[0]) & set(originals[1])):
        count = 0
        for i, ids in enumerate(originals):
            originals[i] = list(range(count + 1, count + len(ids) + 1))
            count += len(ids)
    found = iter(originals)
    return tuple(next(found) if split is not None else [] for split in (train, test))


def write_id_file(
    folder: Path,
    train: Optional[SplitContent],
    test: Optional[SplitContent],
    written: tuple[Sequence[Any], Sequence[Any]],
) -> list[str]:
    """Write ``person_ids.json``, written id against original id, if a split's ids have changed."""
    tables = {}
    for part, split, ids in zip(("train", "test"), (train, test), written):
        if split is not None and list(ids) != split.id_map.to_list():
            tables[part] = [list(pair) for pair in zip(ids, split.id_map.to_list())]
    if not tables:
        return []
    write_json(folder / "person_ids.json", tables)
    return ["people have other ids than before; person_ids.json has both"]


def write_queries(
    path: Path,
    test: SplitContent,
    person: Callable[[int], Any],
    frames: Sequence[str],
) -> None:
    """Write the queries as lines ``pid x y w h frame``, PRW's form.

    Args:
        person: written id of a row.
        frames: name of each image.
    """
    names = {id(record): name for record, name in zip(test.dicts, frames)}
    lines = [
        " ".join(
            [
                str(person(query["person_id"])),
                *map(repr, xywh(query["bbox"])),
                names[id(record)],
            ]
        )
        for query, record in test.queries
    ]
    with atomic_write(path) as stream:
        stream.write(("\r\n".join(lines) + "\r\n").encode())


def refuse_outside_gallery(split: SplitContent, what: str) -> None:
    """Refuse images that are not searched, which only COCO-JSON can say."""
    for record in split.dicts:
        if not record.get("in_gallery", True):
            raise ValueError(
                f"{split.name}: {record['file_name']} is outside of the gallery, which {what} "
                "cannot say; write COCO-JSON"
            )


def gallery_note(split: SplitContent, what: str) -> list[str]:
    """Say that a format cannot keep galleries."""
    if not split.galleries:
        return []
    return [f"galleries {', '.join(split.galleries)} are left out: {what} has none"]


def subset_note(split: SplitContent) -> list[str]:
    """Say that queries of a subset have become queries of the set."""
    count = sum("subset" in query for query, _ in split.queries)
    return [f"{count} queries of a subset only are now queries of the set"] if count else []
