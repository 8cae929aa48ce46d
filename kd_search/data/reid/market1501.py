"""Market-1501 and sets of the same layout: crops in folders, labelled by their names."""

import dataclasses
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional, TypeVar

from kd_search.data.io.files import image_names
from kd_search.data.person_search.id_map import OriginalID
from kd_search.data.reid.register import register_reid_set
from kd_search.data.reid.samples import (
    PERSON_SIZE,
    LoadedReID,
    Tracklet,
    load_tracklets,
    require_split,
)

#: Folder and role of the crops of each split.
_FOLDERS = {
    "train": (("bounding_box_train", "train"),),
    "test": (("query", "query"), ("bounding_box_test", "gallery")),
}
#: Folder of the release's archive.
_RELEASE = "Market-1501-v15.09.15"
#: 0002_c1s1_000451_03.jpg of Market-1501, 0002_c1_f0044158.jpg of DukeMTMC-reID.
_NAME = re.compile(r"(-?\d+)_c(\d+)(?:s(\d+))?_f?(\d+)(?:_(\d+))?(?!\d)")

#: Largest number of frames between two crops of a tracklet: five seconds of Market-1501's cameras.
FRAME_GAP = 125
#: Default share of the identities of a folder that become test identities, and seed of the choice.
TEST_SHARE = 1 / 3
SEED = 0

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, order=True)
class CropName:
    """Parsed name; crops sort by identity, camera, sequence, frame and detection."""

    #: -1 is junk, 0 a distractor.
    number: int
    camera_id: int
    sequence: int
    frame: int
    detection: int
    file: str

    @property
    def person_id(self) -> Optional[int]:
        return self.number if self.number > 0 else None


def load_market1501(
    root: str,
    split: str,
    *,
    tracklets: bool = False,
    input_size: tuple[int, int] = PERSON_SIZE,
    hint: str = "",
) -> LoadedReID:
    """One split of a folder with ``bounding_box_train``, ``query`` and ``bounding_box_test``.

    Junk (bad detections, identity -1) is left out and counted; no rank depends on it. Distractors
    (identity 0) are in the gallery and match no query.

    Args:
        root: the folder, or the one that holds the release's.
        split: "train" or "test".
        tracklets: samples are tracklets, see :func:`group_tracklets`, instead of single crops.
        input_size: height and width that such crops are usually resized to.
        hint: what to do if a folder is missing.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or empty, or a name has another form.
    """
    require_split(split, root)
    release = os.path.join(root, _RELEASE)
    root = release if os.path.isdir(release) else root
    found: list[Tracklet] = []
    notes: list[str] = []
    for folder, role in _FOLDERS[split]:
        path = os.path.join(root, folder)
        names, junk = read_crops(path, hint)
        notes += [f"{junk} junk crops of {folder} are left out"] if junk else []
        found += _tracklets(path, names, role, tracklets)
    if not any(tracklet.person_id is not None for tracklet in found):
        raise ValueError(f"{root}: the {split} split has no crop of a numbered identity")
    return load_tracklets(found, root, input_size=input_size, notes=notes, reid_root=root)


def load_market1501_split(
    folder: str,
    split: str,
    *,
    tracklets: bool = False,
    test_share: float = TEST_SHARE,
    seed: int = SEED,
    input_size: tuple[int, int] = PERSON_SIZE,
) -> LoadedReID:
    """A train or test split of a single folder of crops, such as ``bounding_box_train`` alone.

    Identities are divided by :func:`split_ids`. One crop (or tracklet) of each test identity and
    camera is a query. Queries that are crops are not in the gallery, as in Market-1501. Queries
    that are tracklets are, as in the evaluation of MARS, because many cameras have a single one of
    an identity.

    Args:
        folder: folder of the crops, or one that holds ``bounding_box_train``.
        split: "train" or "test".
        tracklets, input_size: as :func:`load_market1501`.
        test_share, seed: of the division.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_market1501`; or too few identities.
    """
    require_split(split, folder)
    inner = os.path.join(folder, "bounding_box_train")
    folder = inner if os.path.isdir(inner) else folder
    names, junk = read_crops(folder)
    try:
        chosen = split_ids((n.number for n in names if n.person_id is not None), test_share, seed)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    is_test = split == "test"
    wanted = set(chosen[is_test])
    # Distractors have no identity to train on.
    names = [n for n in names if n.number in wanted or (is_test and not n.number)]
    found = _tracklets(folder, names, "gallery" if is_test else "train", tracklets)
    if is_test:
        found = _with_queries(found, seed, "both" if tracklets else "query")
    notes = [f"{junk} junk crops are left out"] if junk else []
    return load_tracklets(found, folder, input_size=input_size, notes=notes, reid_root=folder)


def register_market1501(
    name: str,
    root: str,
    split: str,
    *,
    tracklets: bool = False,
    input_size: tuple[int, int] = PERSON_SIZE,
    replace: bool = False,
) -> None:
    """Register a split of a folder laid out like Market-1501; see :func:`load_market1501`."""
    load = partial(load_market1501, root, split, tracklets=tracklets, input_size=input_size)
    register_reid_set(name, load, replace=replace)


def register_market1501_split(
    prefix: str, folder: str, *, replace: bool = False, **options: Any
) -> None:
    """Register ``<prefix>_train`` and ``<prefix>_test`` of one folder of crops.

    Args:
        prefix: of the two names.
        folder, options: of :func:`load_market1501_split`.
        replace: instead of sets of these names.
    """
    for split in ("train", "test"):
        load = partial(load_market1501_split, folder, split, **options)
        register_reid_set(f"{prefix}_{split}", load, replace=replace)


def read_crops(folder: str, hint: str = "") -> tuple[list[CropName], int]:
    """Sorted names of the crops of a folder without junk, and the number of junk crops.

    Raises:
        FileNotFoundError, ValueError: the folder is missing, or a name has another form.
    """
    names = sorted(parse_crop_name(name, folder) for name in image_names(folder, hint))
    kept = [name for name in names if name.number >= 0]
    return kept, len(names) - len(kept)


def parse_crop_name(name: str, where: str) -> CropName:
    """Parse a file name without its folder.

    Raises:
        ValueError: it has another form; the message names ``where``, the folder.
    """
    match = _NAME.match(name)
    if match is None:
        raise ValueError(
            f"{where}: {name} is not named like 0002_c1s1_000451_03.jpg (identity, camera, "
            "sequence, frame, detection)"
        )
    number, camera, sequence, frame, detection = (int(part or 0) for part in match.groups())
    return CropName(number, camera, sequence, frame, detection, name)


def group_tracklets(names: Iterable[CropName], gap: int = FRAME_GAP) -> list[list[CropName]]:
    """Crops of one identity in one camera and sequence, split at gaps of over ``gap`` frames.

    Market-1501 does not list its tracklets, but its names determine them. Junk and distractors,
    whose number is shared by many people, stay single images.

    Returns:
        Tracklets in the order of identity, camera, sequence and frame.
    """
    groups: list[list[CropName]] = []
    for name in sorted(names):
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and name.person_id is not None
            and (name.number, name.camera_id, name.sequence)
            == (last.number, last.camera_id, last.sequence)
            and name.frame - last.frame <= gap
        ):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def split_ids(
    ids: Iterable[OriginalID], test_share: float = TEST_SHARE, seed: int = SEED
) -> tuple[list[OriginalID], list[OriginalID]]:
    """Train and test identities, each ascending.

    Identities are ordered by the SHA-256 digests of ``"<seed>/<id>"``, which are the same on every
    machine and in every version of every library.

    Args:
        ids: identities, repeats allowed.
        test_share: share of the test identities, rounded; each side has at least one.
        seed: another one gives another split.

    Raises:
        ValueError: there are fewer than two identities, or the share is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"the share {test_share} of test identities is not between 0 and 1")
    ordered: list[Any] = sorted(set(ids))
    if len(ordered) < 2:
        raise ValueError(f"{len(ordered)} identities cannot be split into train and test")
    count = min(max(round(test_share * len(ordered)), 1), len(ordered) - 1)
    test = set(sorted(ordered, key=partial(_digest, seed))[:count])
    return [i for i in ordered if i not in test], [i for i in ordered if i in test]


def choose_queries(items: Sequence[tuple[OriginalID, int, Item]], seed: int = SEED) -> set[Item]:
    """One item of each identity in each of its cameras, as in Market-1501.

    Identities of a single camera have no match in another one and give no query.

    Args:
        items: (identity, camera, item); items are distinguished by their text.
        seed: of the choice, which is made as in :func:`split_ids`.
    """
    by_place: dict[tuple[OriginalID, int], list[Item]] = defaultdict(list)
    cameras: dict[OriginalID, set[int]] = defaultdict(set)
    for original, camera, item in items:
        by_place[original, camera].append(item)
        cameras[original].add(camera)
    return {
        min(candidates, key=partial(_digest, seed))
        for (original, _), candidates in by_place.items()
        if len(cameras[original]) > 1
    }


def _digest(seed: int, what: Any) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}/{what}".encode()).digest(), str(what)


def _tracklets(folder: str, names: list[CropName], role: str, whole: bool) -> list[Tracklet]:
    found = []
    for number, group in enumerate(group_tracklets(names)):
        for part in [group] if whole else [[name] for name in group]:
            first = part[0]
            found.append(
                Tracklet(
                    tuple(os.path.join(folder, name.file) for name in part),
                    first.person_id,
                    first.camera_id,
                    role,
                    frame_id=first.frame,
                    group=f"{role}{number}",
                )
            )
    return found


def _with_queries(tracklets: list[Tracklet], seed: int, role: str) -> list[Tracklet]:
    """The tracklets, with another role for the chosen queries."""
    firsts = [os.path.basename(tracklet.file_names[0]) for tracklet in tracklets]
    queries = choose_queries(
        [
            (t.person_id, t.camera_id, first)
            for t, first in zip(tracklets, firsts)
            if t.person_id is not None
        ],
        seed,
    )
    return [
        dataclasses.replace(t, role=role) if first in queries else t
        for t, first in zip(tracklets, firsts)
    ]
