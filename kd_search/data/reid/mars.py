"""MARS: tracklets of the people of Market-1501, listed in MATLAB files."""

import os
import re
from typing import Optional

import numpy as np

from kd_search.data.io.files import read_lines
from kd_search.data.io.mat import read_mat
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets, require_split

#: 0065C1T0002F016.jpg: identity, camera, tracklet, frame; junk is 00-1C1T0001F001.jpg.
_NAME = re.compile(r"(\d{4}|00-1)C(\d)T(\d+)F(\d+)")


def load_mars(root: str, split: str, *, info: Optional[str] = None, hint: str = "") -> LoadedReID:
    """One split of MARS.

    Tracklets of identity -1 are junk and left out; those of identity 0 are distractors. Queries
    have the role "both": the authors of VKD (ECCV 2020), among others, append them to the gallery;
    without that, 140 of them have no match.

    Args:
        root: folder with ``bbox_train``, ``bbox_test`` and ``info``.
        split: "train" or "test".
        info: folder of the lists, instead of ``info`` below ``root``.
        hint: what to do if a file is missing.

    Raises:
        FileNotFoundError, ValueError: a list is missing, or inconsistent with the others. Missing
            images raise when they are read.
    """
    require_split(split, root)
    info = os.path.join(root, "info") if info is None else info
    tracks = read_tracks(info, split)
    queries = read_queries(info, len(tracks)) if split == "test" else np.zeros(0, np.int64)
    names_file = os.path.join(info, f"{split}_name.txt")
    hint = hint or f"it names the images of MARS's {split} split"
    names = [name for _, name in read_lines(names_file, hint=hint)]
    is_query = np.isin(np.arange(len(tracks)), queries)
    tracklets, junk = [], 0
    for number, (first, last, original, camera) in enumerate(tracks.tolist()):
        if original == -1:
            junk += 1
            continue
        where = f"{names_file}: lines {first} to {last}"
        if last > len(names):
            raise ValueError(
                f"{names_file}: {len(names)} lines, but track {number + 1} of "
                f"tracks_{split}_info.mat ends at line {last}"
            )
        part = names[first - 1 : last]
        _check_names(part, original, camera, where)
        folder = os.path.join(root, f"bbox_{split}", part[0][:4])
        files = tuple(os.path.join(folder, name) for name in part)
        role = "train" if split == "train" else "both" if is_query[number] else "gallery"
        tracklets.append(Tracklet(files, original if original > 0 else None, camera, role))
    notes = [f"{junk} junk tracklets are left out"] if junk else []
    return load_tracklets(tracklets, info, notes=notes, reid_root=root)


def read_tracks(info: str, split: str) -> np.ndarray:
    """Rows of ``tracks_<split>_info.mat``, (T, 4) int64.

    Columns are the first and last line of the list of names, counted from 1, identity and camera.

    Raises:
        FileNotFoundError, ValueError: the file is missing or holds something else.
    """
    path = os.path.join(info, f"tracks_{split}_info.mat")
    tracks = read_mat(path, f"track_{split}_info")
    if tracks.ndim != 2 or tracks.shape[1] != 4 or tracks.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: expected rows of four numbers, got {tracks.dtype} of shape {tracks.shape}"
        )
    tracks = tracks.astype(np.int64)
    bad = (tracks[:, 0] < 1) | (tracks[:, 1] < tracks[:, 0]) | (tracks[:, 2] < -1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{path}: row {row + 1} is {tracks[row].tolist()}, which is no track")
    return tracks


def read_queries(info: str, num_tracks: int) -> np.ndarray:
    """Queries of ``query_IDX.mat`` as places in ``tracks_test_info.mat``, counted from 0.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or has a track that does not exist.
    """
    path = os.path.join(info, "query_IDX.mat")
    queries = read_mat(path, "query_IDX").astype(np.int64).ravel() - 1
    if len(queries) == 0 or queries.min() < 0 or queries.max() >= num_tracks:
        raise ValueError(f"{path}: queries are not numbers from 1 to {num_tracks}")
    return queries


def _check_names(names: list[str], original: int, camera: int, where: str) -> None:
    # Without this check, a list of other tracks would yield wrong metrics silently.
    for name in names:
        match = _NAME.match(name)
        if match is None:
            raise ValueError(f"{where}: {name} is not named like 0065C1T0002F016.jpg")
        if int(match[1].replace("00-1", "-1")) != original or int(match[2]) != camera:
            raise ValueError(
                f"{where}: {name} is not of identity {original} and camera {camera}, as listed in "
                "the tracks"
            )
