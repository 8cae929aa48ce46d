"""VeRi-776: vehicles, with lists of images and of test tracks."""

import os
import re
from collections import defaultdict

from kd_search.data.io.files import read_lines
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets, require_split

#: 0002_c002_00030600_0.jpg: vehicle, camera, time, number in the track.
_NAME = re.compile(r"(\d+)_c(\d+)_(\d+)(_\d+)?\.\w+")
#: Title of a track, which lacks the last number.
_TITLE = re.compile(r"\d+_c\d+_\d+\.\w+")

#: Height and width of crops of vehicles (VKD, ECCV 2020).
VEHICLE_SIZE = (224, 224)


def load_veri(root: str, split: str, *, tracklets: bool = True, hint: str = "") -> LoadedReID:
    """One split of VeRi-776, as the authors of VKD (ECCV 2020) use it.

    - Training tracklets are all images of a vehicle in a camera (``name_train.txt``): the set has
      no list of training tracks.
    - Gallery tracklets are the lines of ``test_track.txt``.
    - A query (``name_query.txt``) is the first gallery tracklet of its vehicle and camera; in
      settings with single images it is the query's own, from ``image_query``.

    Args:
        root: folder with the lists, ``image_train``, ``image_query`` and ``image_test``.
        split: "train" or "test".
        tracklets: ``False`` makes every image a sample (``name_test.txt`` is the gallery).
        hint: what to do if a file is missing.

    Raises:
        FileNotFoundError, ValueError: a list is missing or cannot be read, or a query is of a
            vehicle and camera without a track. Missing images raise when they are read.
    """
    require_split(split, root)
    if split == "train":
        found = _train(root, tracklets, hint)
    elif tracklets:
        found = _test_tracks(root, hint)
    else:
        found = _images(root, "query", "query", hint) + _images(root, "test", "gallery", hint)
    # In a gallery of images, each image of a track is an entry.
    return load_tracklets(
        found, root, input_size=VEHICLE_SIZE, gallery_images="all", reid_root=root
    )


def _names(root: str, split: str, hint: str) -> list[tuple[int, int, str]]:
    """(vehicle, camera, name) of each line of a list."""
    path = os.path.join(root, f"name_{split}.txt")
    return [(*_parse(name, path), name) for _, name in read_lines(path, hint=hint)]


def _parse(name: str, where: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{where}: {name!r} is not named like 0002_c002_00030600_0.jpg")
    return int(match[1]), int(match[2])


def _images(root: str, split: str, role: str, hint: str) -> list[Tracklet]:
    folder = os.path.join(root, f"image_{split}")
    return [
        Tracklet((os.path.join(folder, name),), vehicle, camera, role)
        for vehicle, camera, name in _names(root, split, hint)
    ]


def _train(root: str, tracklets: bool, hint: str) -> list[Tracklet]:
    folder = os.path.join(root, "image_train")
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for vehicle, camera, name in _names(root, "train", hint):
        groups[vehicle, camera].append(name)
    found = []
    for (vehicle, camera), names in sorted(groups.items()):
        files = [os.path.join(folder, name) for name in sorted(names)]
        for part in [files] if tracklets else [[file] for file in files]:
            found.append(Tracklet(tuple(part), vehicle, camera, "train", group=(vehicle, camera)))
    return found


def _test_tracks(root: str, hint: str) -> list[Tracklet]:
    path = os.path.join(root, "test_track.txt")
    gallery: list[Tracklet] = []
    first: dict[tuple[int, int], Tracklet] = {}
    for number, (_, line) in enumerate(read_lines(path, hint=hint), 1):
        where = f"{path}: track {number}"
        names = line.split()
        place = _parse(names[0], where)
        # The first word is the title of the track, not an image, if it lacks a number or is
        # repeated.
        if _TITLE.fullmatch(names[0]) or names[0] in names[1:]:
            names = names[1:]
        if not names:
            raise ValueError(f"{where}: no image")
        if any(_parse(name, where) != place for name in names):
            raise ValueError(f"{where}: images of several vehicles or cameras")
        files = tuple(os.path.join(root, "image_test", name) for name in names)
        gallery.append(Tracklet(files, *place, "gallery"))
        first.setdefault(place, gallery[-1])
    queries = []
    for vehicle, camera, name in _names(root, "query", hint):
        track = first.get((vehicle, camera))
        if track is None:
            raise ValueError(
                f"{path}: no track of vehicle {vehicle} in camera {camera} for the query {name} of "
                "name_query.txt"
            )
        still = os.path.join(root, "image_query", name)
        queries.append(Tracklet(track.file_names, vehicle, camera, "query", still=still))
    return queries + gallery
