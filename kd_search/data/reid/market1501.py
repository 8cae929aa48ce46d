"""Market-1501 and sets laid out alike: crops in folders, with everything told by their names."""

import dataclasses
import os
from collections import Counter

from kd_search.data.reid.folders import image_names
from kd_search.data.reid.id_split import SEED, TEST_SHARE, choose_queries, split_ids
from kd_search.data.reid.market_names import CropName, group_tracklets, parse_crop_name
from kd_search.data.reid.register import register_reid_set
from kd_search.data.reid.samples import PERSON_SIZE, LoadedReID, Tracklet, load_tracklets

_FOLDERS = {"train": ("bounding_box_train",), "test": ("query", "bounding_box_test")}
#: Folder of the release's archive.
_RELEASE = "Market-1501-v15.09.15"


def load_market1501(
    root: str,
    split: str,
    *,
    tracklets: bool = False,
    input_size: tuple[int, int] = PERSON_SIZE,
    hint: str = "",
) -> LoadedReID:
    """One split of a folder with ``bounding_box_train``, ``query`` and ``bounding_box_test``.

    Identity -1 is junk (bad detections): left out, and counted, as no query's rank depends on it.
    Identity 0 is a distractor: in the gallery, and never right.

    Args:
        root: the folder, or the one that holds the release's.
        split: "train" or "test".
        tracklets: samples are tracklets, see
            :func:`~kd_search.data.reid.market_names.group_tracklets`, instead of single crops.
        input_size: height and width that the field resizes such crops to.
        hint: what to do if a folder is missing.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or empty, or a name cannot be read.
    """
    if split not in _FOLDERS:
        raise ValueError(f"{root}: the split {split!r} is neither 'train' nor 'test'")
    if os.path.isdir(os.path.join(root, _RELEASE)):
        root = os.path.join(root, _RELEASE)
    found, notes = [], []
    for folder in _FOLDERS[split]:
        role = {"bounding_box_train": "train", "query": "query"}.get(folder, "gallery")
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

    Identities are divided by :func:`~kd_search.data.reid.id_split.split_ids`. One crop (or
    tracklet) of each test identity and camera is a query. Crops that are queries are not in the
    gallery, as in Market-1501; tracklets are in both, as the queries of MARS are in evaluation,
    because many cameras have a single one of an identity.

    Args:
        folder: folder of the crops, or one that holds ``bounding_box_train``.
        split: "train" or "test".
        tracklets, input_size: as :func:`load_market1501`.
        test_share, seed: of the division.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_market1501`; or too few identities.
    """
    if split not in _FOLDERS:
        raise ValueError(f"{folder}: the split {split!r} is neither 'train' nor 'test'")
    inner = os.path.join(folder, "bounding_box_train")
    folder = inner if os.path.isdir(inner) else folder
    names, junk = read_crops(folder)
    notes = [f"{junk} junk crops are left out"] if junk else []
    try:
        chosen = split_ids((n.number for n in names if n.person_id is not None), test_share, seed)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    wanted = set(chosen[split == "test"])
    # Distractors are nobody to learn from.
    names = [n for n in names if n.number in wanted or (split == "test" and not n.number)]
    role = "train" if split == "train" else "gallery"
    found = _tracklets(folder, names, role, tracklets)
    if split == "test":
        found = _with_queries(found, seed, "both" if tracklets else "query")
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
    register_reid_set(
        name,
        lambda: load_market1501(root, split, tracklets=tracklets, input_size=input_size),
        replace=replace,
    )


def register_market1501_split(
    prefix: str,
    folder: str,
    *,
    tracklets: bool = False,
    test_share: float = TEST_SHARE,
    seed: int = SEED,
    input_size: tuple[int, int] = PERSON_SIZE,
    replace: bool = False,
) -> None:
    """Register ``<prefix>_train`` and ``<prefix>_test`` of one folder of crops; see
    :func:`load_market1501_split`."""
    for split in ("train", "test"):
        register_reid_set(
            f"{prefix}_{split}",
            lambda split=split: load_market1501_split(
                folder,
                split,
                tracklets=tracklets,
                test_share=test_share,
                seed=seed,
                input_size=input_size,
            ),
            replace=replace,
        )


def read_crops(folder: str, hint: str = "") -> tuple[list[CropName], int]:
    """Names of the crops of a folder without junk, sorted, and the number of junk crops.

    Raises:
        FileNotFoundError, ValueError: the folder is missing, or a name cannot be read.
    """
    names = sorted(parse_crop_name(name, folder) for name in image_names(folder, hint))
    counts = Counter(name.number < 0 for name in names)
    return [name for name in names if name.number >= 0], counts[True]


def _tracklets(folder: str, names: list[CropName], role: str, whole: bool) -> list[Tracklet]:
    found = []
    for number, group in enumerate(group_tracklets(names)):
        for part in [group] if whole else [[name] for name in group]:
            found.append(_tracklet(folder, part, role, f"{role}{number}"))
    return found


def _tracklet(folder: str, names: list[CropName], role: str, group: str) -> Tracklet:
    files = tuple(os.path.join(folder, name.file) for name in names)
    first = names[0]
    return Tracklet(
        files, first.person_id, first.camera_id, role, frame_id=first.frame, group=group
    )


def _with_queries(tracklets: list[Tracklet], seed: int, role: str) -> list[Tracklet]:
    """The tracklets with the role of the chosen ones changed."""
    places = [
        (t.person_id, t.camera_id, os.path.basename(t.file_names[0]))
        for t in tracklets
        if t.person_id is not None
    ]
    queries = choose_queries(places, seed)
    return [
        dataclasses.replace(t, role=role)
        if t.person_id is not None and os.path.basename(t.file_names[0]) in queries
        else t
        for t in tracklets
    ]
