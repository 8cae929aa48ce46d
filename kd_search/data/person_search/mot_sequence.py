"""Sequences of a MOTChallenge folder: img1/, gt/gt.txt and seqinfo.ini."""

import configparser
import os
import re
import warnings
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from kd_search.data.io.files import image_names, require_file

#: A sequence is published once for each of these public detectors, in order of preference.
_DETECTORS = ("FRCNN", "SDP", "DPM")
_NAME = re.compile(rf"(.+)-({'|'.join(_DETECTORS)})")


@dataclass(frozen=True)
class SequenceInfo:
    """Content of ``seqinfo.ini``; missing values are ``None``."""

    image_folder: str = "img1"
    length: Optional[int] = None
    width: Optional[int] = None
    height: Optional[int] = None
    #: Of the section [kd_search], which is not part of the benchmark: the camera, and whether all
    #: sequences with this flag have one numbering of people.
    camera_id: Optional[int] = None
    shared_ids: bool = False


@dataclass(frozen=True)
class Sequence:
    """A sequence and its frames on disk."""

    #: Name without the detector, and folder.
    name: str
    folder: str
    info: SequenceInfo
    #: Path of each frame by its number, ascending.
    frames: dict[int, str] = field(repr=False)


def find_sequences(root: str, wanted: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Folders of the sequences below ``root``, or below ``root``/train if there are none.

    Of the copies for several detectors one is taken: FRCNN, or else SDP, or else DPM.

    Args:
        root: folder.
        wanted: names, with or without the detector; empty for all.

    Returns:
        The folders in the order of their names, and notes on the other copies.

    Raises:
        FileNotFoundError: there is no sequence.
        ValueError: there is no sequence of a wanted name.
    """
    folders = _sequence_folders(root) or _sequence_folders(os.path.join(root, "train"))
    if not folders:
        raise FileNotFoundError(
            f"{root}: no sequence there or in train/ below; a sequence is a folder with img1/ and "
            "gt/gt.txt"
        )
    by_name: dict[str, list[str]] = {}
    for folder in folders:
        by_name.setdefault(sequence_name(folder), []).append(folder)
    full = {os.path.basename(folder): folder for folder in folders}
    chosen, passed = {}, 0
    for name in wanted or sorted(by_name):
        if name in full:
            chosen[sequence_name(name)] = full[name]
        elif name in by_name:
            chosen[name] = min(by_name[name], key=_preference)
            passed += len(by_name[name]) - 1
        else:
            known = ", ".join(sorted(by_name))
            raise ValueError(f"{root}: no sequence is named {name!r} (known: {known})")
    notes = [f"{passed} copies of sequences for other detectors are left out"] if passed else []
    return [chosen[name] for name in sorted(chosen)], notes


def sequence_name(folder: str) -> str:
    """Name of a sequence without its detector."""
    name = os.path.basename(os.path.normpath(folder))
    match = _NAME.fullmatch(name)
    return match[1] if match else name


def read_sequence(folder: str) -> Sequence:
    """Read ``seqinfo.ini`` and list the frames on disk.

    Raises:
        FileNotFoundError: there is no image folder.
        ValueError: a file name is no frame number, or ``seqinfo.ini`` is broken.
    """
    info = _read_info(os.path.join(folder, "seqinfo.ini"))
    images = os.path.join(folder, info.image_folder)
    frames: dict[int, str] = {}
    for file in image_names(images):
        stem = os.path.splitext(file)[0]
        path = os.path.join(images, file)
        if not stem.isdecimal() or int(stem) < 1:
            raise ValueError(f"{path}: the name is not the number of a frame, from 1")
        if int(stem) in frames:
            raise ValueError(f"{path}: frame {int(stem)} is also {frames[int(stem)]}")
        frames[int(stem)] = path
    return Sequence(sequence_name(folder), folder, info, dict(sorted(frames.items())))


def read_ground_truth(folder: str) -> np.ndarray:
    """Rows frame, id, x, y, w, h, flag, class, visibility of ``gt/gt.txt``, (n, 9) float64.

    x and y count from 1. Rows without class and visibility, as those of MOT15, get class 1 and
    visibility 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has another form; the message has the row.
    """
    path = os.path.join(folder, "gt", "gt.txt")
    require_file(path, "the benchmark does not publish that of its test sequences")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of a file without rows
            rows = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not rows.size:
        return np.zeros((0, 9))
    if not 7 <= rows.shape[1] <= 10:
        raise ValueError(
            f"{path}: {rows.shape[1]} columns, expected frame, id, x, y, w, h, flag, class, "
            "visibility"
        )
    # MOT15 has world coordinates after the flag, which are -1 -1 -1 in two dimensions.
    ones = np.ones((len(rows), 9))
    kept = 7 if rows.shape[1] == 10 else rows.shape[1]
    ones[:, :kept] = rows[:, :kept]
    whole = (ones[:, [0, 1, 7]] == np.floor(ones[:, [0, 1, 7]])).all(axis=1)
    sound = np.isfinite(ones).all(axis=1) & whole & (ones[:, 0] >= 1)
    if not sound.all():
        number = int(np.flatnonzero(~sound)[0])
        raise ValueError(
            f"{path}: entry {number + 1} is {rows[number].tolist()}; frame, id and class must be "
            "whole numbers, frames count from 1"
        )
    return ones


def _sequence_folders(root: str) -> list[str]:
    if not os.path.isdir(root):
        return []
    folders = [os.path.join(root, name) for name in sorted(os.listdir(root))]
    return [
        folder
        for folder in folders
        if os.path.isdir(os.path.join(folder, "gt"))
        or os.path.isfile(os.path.join(folder, "seqinfo.ini"))
    ]


def _preference(folder: str) -> int:
    match = _NAME.fullmatch(os.path.basename(folder))
    return _DETECTORS.index(match[2]) if match else -1


def _read_info(path: str) -> SequenceInfo:
    if not os.path.isfile(path):
        return SequenceInfo()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8-sig") as stream:
            parser.read_file(stream)
        return SequenceInfo(
            image_folder=parser.get("Sequence", "imDir", fallback="img1"),
            length=parser.getint("Sequence", "seqLength", fallback=None),
            width=parser.getint("Sequence", "imWidth", fallback=None),
            height=parser.getint("Sequence", "imHeight", fallback=None),
            camera_id=parser.getint("kd_search", "camera_id", fallback=None),
            shared_ids=parser.getboolean("kd_search", "shared_ids", fallback=False),
        )
    except (configparser.Error, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
