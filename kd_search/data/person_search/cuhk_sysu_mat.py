"""Lists of CUHK-SYSU's release: images, people and the test pool."""

from dataclasses import dataclass
from typing import Any

from kd_search.data.io.mat import (
    numbers_of,
    read_mat,
    refuse_repeats,
    struct_entries,
    text_of,
    texts_of,
)

#: x, y, w, h in absolute pixels, as in the files.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Person:
    """An entry of Train.mat or Person.mat."""

    #: "p123".
    name: str
    #: Image and box of each appearance.
    scenes: tuple[tuple[str, Box], ...]
    #: File and entry, for messages.
    where: str


def read_images(path: str) -> dict[str, list[Box]]:
    """Boxes of every image of Images.mat, in the order of the file.

    Raises:
        FileNotFoundError, ValueError: see :func:`~kd_search.data.io.mat.read_mat`; or an entry has
            another form or the image of an earlier one.
    """
    boxes: dict[str, list[Box]] = {}
    for where, image in struct_entries(read_mat(path, "Img"), ("imname", "box"), f"{path}: Img"):
        name = text_of(image["imname"], f"{where}.imname")
        if name in boxes:
            raise ValueError(f"{where}.imname: {name} is already an earlier entry")
        boxes[name] = [
            _box(entry["idlocate"], f"{at}.idlocate")
            for at, entry in struct_entries(image["box"], ("idlocate",), f"{where}.box")
        ]
    if not boxes:
        raise ValueError(f"{path}: Img holds no image")
    return boxes


def read_people(path: str, key: str) -> list[Person]:
    """People of Train.mat (variable Train) or of Person.mat (variable Person), in file order.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_images`.
    """
    people = []
    for where, person in struct_entries(read_mat(path, key), ("idname", "scene"), f"{path}: {key}"):
        scenes = tuple(
            (text_of(s["imname"], f"{at}.imname"), _box(s["idlocate"], f"{at}.idlocate"))
            for at, s in struct_entries(person["scene"], ("imname", "idlocate"), f"{where}.scene")
        )
        people.append(Person(text_of(person["idname"], f"{where}.idname"), scenes, where))
    refuse_repeats((person.name for person in people), f"{path}: {key}")
    return people


def read_pool(path: str) -> list[str]:
    """Names of the test images, in file order.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_images`.
    """
    pool = texts_of(read_mat(path, "pool"), f"{path}: pool")
    refuse_repeats(pool, f"{path}: pool")
    return pool


def _box(value: Any, where: str) -> Box:
    numbers = numbers_of(value, 4, where)
    if not len(numbers):
        raise ValueError(f"{where}: expected 4 numbers, the field is empty")
    x, y, w, h = numbers.tolist()
    return x, y, w, h
