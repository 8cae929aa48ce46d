"""A test set from a training set: people held out with their pictures, and queries."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from kd_search.data.person_search.coco_json import read_coco_json
from kd_search.data.person_search.id_map import OriginalID, is_labelled
from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import has_area, non_crowd
from kd_search.utils.files import atomic_write, write_json

#: Share of the people to hold out, as in the usual split of a fifth.
PEOPLE_SHARE = 0.2
#: Largest share of the pictures that go with them; the second one where nobody fits into the first.
PICTURE_SHARES = (0.25, 0.5)


@dataclass(frozen=True)
class HeldOut:
    """Files of a divided set."""

    train: Path
    test: Path
    #: Number of people held out.
    people: int
    why: str


def hold_out_people(json_file: str, folder: Path, *, seed: int) -> HeldOut:
    """Divide a COCO-JSON file into ``train.json`` and ``val.json``, people and pictures apart.

    A fifth of the people, in an order that the seed determines, are held out with every picture
    that shows one of them, up to a quarter of all pictures (a half where they are often together,
    as in small sets). In those pictures other people lose
    their identity (they train in the remaining ones); people who are in no other picture are held
    out too. Of pictures without a person with an identity a fifth go along.

    Args:
        json_file: see :func:`~kd_search.data.person_search.coco_json.load_coco_json`.
        folder: of the two files.
        seed: of the order.

    Raises:
        FileNotFoundError, ValueError: the file is missing or broken, or too many people are
            together in pictures.
    """
    content = read_coco_json(json_file)
    pictures: dict[OriginalID, set] = defaultdict(set)
    for annotation in content["annotations"]:
        if is_labelled(annotation["person_id"]):
            pictures[annotation["person_id"]].add(annotation["image_id"])
    for share in PICTURE_SHARES:
        chosen = choose_people(pictures, share * len(content["images"]), seed)
        if len(chosen) > 1:
            break
    taken = set().union(*(pictures[person] for person in chosen)) if chosen else set()
    held = {person for person, own in pictures.items() if own <= taken}
    matched = [person for person in held if len(pictures[person]) > 1]
    if len(matched) < 2 or len(held) == len(pictures):
        raise ValueError(
            f"{json_file}: no two people can be held out for a test (in two or more pictures each, "
            f"{100 * share:.0f} % of all at most): name a test set with --test"
        )
    shown = set().union(*pictures.values())
    for image in content["images"]:
        if image["id"] not in shown and _draw(seed, image["id"]) < PEOPLE_SHARE:
            taken.add(image["id"])
    note = {"seed": seed, "of": str(json_file), "people_held_out": sorted(held, key=str)}
    paths = (folder / "train.json", folder / "val.json")
    for path, is_test in zip(paths, (False, True)):
        part = {
            **content,
            "kd_search_split": note,
            "images": [i for i in content["images"] if (i["id"] in taken) == is_test],
            "annotations": [
                {**a, "person_id": None} if is_test and a["person_id"] not in held else a
                for a in content["annotations"]
                if (a["image_id"] in taken) == is_test
            ],
        }
        write_json(path, part)
    why = (
        f"no --test was given: a fifth of the people, drawn with seed {seed}, and their "
        f"{len(taken)} pictures"
    )
    return HeldOut(*paths, len(held), why)


def choose_people(pictures: dict[OriginalID, set], most: float, seed: int) -> list[OriginalID]:
    """People to hold out: in an order that the seed determines, those whose pictures still fit.

    Args:
        pictures: by person, the pictures that show them.
        most: number of pictures that may be taken.
        seed: of the order.
    """
    order = sorted(pictures, key=lambda person: _draw(seed, person))
    chosen: list[OriginalID] = []
    taken: set = set()
    for person in order:
        if len(chosen) >= max(2, PEOPLE_SHARE * len(pictures)):
            break
        together = taken | pictures[person]
        # A person in one picture cannot be searched for.
        if len(pictures[person]) > 1 and len(together) <= most:
            chosen.append(person)
            taken = together
    return chosen


def _draw(seed: int, name: Any) -> float:
    """A number from 0 to 1 that depends on seed and name alone, on any machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write_queries_of(test: LoadedSplit, path: Union[str, Path]) -> tuple[int, int]:
    """Write a query file: the first and the last gallery picture of everybody who is in two.

    The two are as far apart as the file has them, in time or over cameras.

    Returns:
        Number of queries, and of their people.

    Raises:
        ValueError: nobody is in two pictures.
    """
    found: dict[int, list[tuple[str, Sequence[float]]]] = defaultdict(list)
    for record in test.dicts:
        for annotation in non_crowd(record):
            known = annotation["person_id"] >= 0 and has_area(annotation["bbox"])
            if known and record.get("in_gallery", True):
                found[annotation["person_id"]].append((test.image_name(record), annotation["bbox"]))
    lines, people = [], 0
    for row, places in sorted(found.items()):
        if len({name for name, _ in places}) < 2:
            continue
        people += 1
        person = str(test.id_map.original(row))
        if len(person.split()) != 1:
            raise ValueError(f"person_id {person!r}: a query file takes no id with a space")
        for name, (x0, y0, x1, y1) in (places[0], places[-1]):
            numbers = " ".join(repr(float(v)) for v in (x0, y0, x1 - x0, y1 - y0))
            lines.append(f"{person} {numbers} {name}\n")
    if not lines:
        raise ValueError(f"{test.name or path}: nobody is in two pictures: there is no query")
    with atomic_write(path) as file:
        file.write("".join(lines).encode())
    return len(lines), people
