"""Helpers of the writers of all formats."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np
from scipy.io import savemat

from kd_search.data.io.files import whole_folder
from kd_search.data.person_search.split import LoadedSplit
from kd_search.utils.files import atomic_write, write_json


class ImageFolder:
    """Puts images into the folders of a new data set, as hard links where possible.

    Args:
        copy: copy them, so that the new files can be changed without changing the old ones.
    """

    def __init__(self, copy: bool = False) -> None:
        self._copy = copy
        self.linked = 0
        self.copied = 0

    def put(self, source: str, target: Union[str, Path]) -> None:
        """Make ``target`` the image ``source``.

        Raises:
            FileNotFoundError: there is no such image.
            ValueError: ``target`` exists.
        """
        if not os.path.isfile(source):
            raise FileNotFoundError(f"{source}: no such image file")
        if os.path.lexists(target):
            raise ValueError(f"{source}: another image is already named {os.path.basename(target)}")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not self._copy:
            # Fails on another file system, or on one without hard links.
            with contextlib.suppress(OSError):
                os.link(os.path.realpath(source), target)
                self.linked += 1
                return
        shutil.copyfile(source, target)
        self.copied += 1


@contextlib.contextmanager
def new_folder(path: Union[str, Path]) -> Iterator[Path]:
    """A folder to write to, which becomes ``path`` if the block ends without an error.

    Raises:
        ValueError: ``path`` exists and is no empty folder.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists: choose another folder")
    with whole_folder(path) as partial:
        yield partial


def image_names(split: LoadedSplit) -> list[str]:
    """Name of each image below the image folder, with forward slashes, or without its folder."""
    names = []
    for record in split.dicts:
        name = split.image_name(record)
        outside = os.path.isabs(name) or name.startswith("..")
        names.append((os.path.basename(name) if outside else name).replace(os.sep, "/"))
    return names


def xywh(box: Sequence[float]) -> list[float]:
    """x, y, w, h of an XYXY box, integers as int."""
    x0, y0, x1, y1 = map(float, box)
    values = (x0, y0, x1 - x0, y1 - y0)
    return [int(value) if value.is_integer() else value for value in values]


def people_are_joint(train: Optional[LoadedSplit], test: Optional[LoadedSplit]) -> bool:
    """Whether an original id is the same person in both splits, as far as both are written."""
    return train is None or test is None or train.id_space == test.id_space


def person_numbers(
    train: Optional[LoadedSplit], test: Optional[LoadedSplit]
) -> tuple[list[Any], list[Any]]:
    """A number for each row of both splits; different people have different numbers.

    Original ids are kept if they are integers, unless the two splits have different people of one
    id; otherwise people are numbered from 1.
    """
    ids = [split.id_map.to_list() if split is not None else [] for split in (train, test)]
    integers = all(isinstance(original, int) for of_split in ids for original in of_split)
    if not integers or not (people_are_joint(train, test) or not set(ids[0]) & set(ids[1])):
        count = len(ids[0])
        return list(range(1, count + 1)), list(range(count + 1, count + len(ids[1]) + 1))
    return ids[0], ids[1]


def write_id_file(
    folder: Path,
    train: Optional[LoadedSplit],
    test: Optional[LoadedSplit],
    written: tuple[Sequence[Any], Sequence[Any]],
) -> list[str]:
    """Write ``person_ids.json``, pairs of written and original id, if the ids have changed."""
    tables = {}
    for part, split, ids in zip(("train", "test"), (train, test), written):
        if split is not None and list(ids) != split.id_map.to_list():
            tables[part] = [list(pair) for pair in zip(ids, split.id_map.to_list())]
    if not tables:
        return []
    write_json(folder / "person_ids.json", tables)
    return ["people have new ids; person_ids.json has new and old ones"]


def write_queries(
    path: Path, test: LoadedSplit, person: Callable[[int], Any], frames: Sequence[str]
) -> None:
    """Write the queries as lines ``pid x y w h frame``, PRW's format.

    Args:
        path: file to write.
        test: split with the queries.
        person: written id of a row.
        frames: name of each image.
    """
    names = {id(record): name for record, name in zip(test.dicts, frames)}
    lines = [
        f"{person(query['person_id'])} {' '.join(map(repr, xywh(query['bbox'])))} "
        f"{names[id(record)]}\r\n"
        for query, record in test.queries
    ]
    with atomic_write(path) as stream:
        stream.write("".join(lines).encode())


def write_mat(path: Path, key: str, value: np.ndarray) -> None:
    """Write a compressed .mat file with one variable."""
    with atomic_write(path) as stream:
        savemat(stream, {key: value}, do_compression=True)


def cell_array(values: Sequence[Any]) -> np.ndarray:
    """MATLAB's cell array, (n, 1)."""
    cells = np.empty((len(values), 1), dtype=object)
    for index, value in enumerate(values):
        cells[index, 0] = value
    return cells


def refuse_outside_gallery(split: LoadedSplit, what: str) -> None:
    """Refuse images outside of the gallery, which only COCO-JSON can represent."""
    for record in split.dicts:
        if not record.get("in_gallery", True):
            raise ValueError(
                f"{split.name}: {record['file_name']} is outside of the gallery, which {what} "
                "cannot represent; write COCO-JSON"
            )


def gallery_note(split: LoadedSplit, what: str) -> list[str]:
    """Note for a format without galleries."""
    if not split.galleries:
        return []
    return [f"galleries {', '.join(split.galleries)} are left out: {what} has none"]


def subset_note(split: LoadedSplit) -> list[str]:
    """Note that queries of a subset have become queries of the set."""
    count = sum("subset" in query for query, _ in split.queries)
    return [f"{count} queries of a subset only are now queries of the set"] if count else []
