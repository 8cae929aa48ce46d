"""Reads one sequence of a MOTChallenge folder: img1/, gt/gt.txt and seqinfo.ini."""

import configparser
import os
import re
import warnings
from dataclasses import dataclass, field
from typing import Optional

import numpy as np

#: The same frames and ground truth are given out once per public detector.
_DETECTOR = re.compile(r"(.+)-(FRCNN|SDP|DPM)")
_IMAGE_ENDS = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class SequenceInfo:
    """``seqinfo.ini``; what it does not say is ``None``."""

    image_folder: str = "img1"
    length: Optional[int] = None
    width: Optional[int] = None
    height: Optional[int] = None
    #: Section [kd_search], which the benchmark itself does not have: the camera, and whether ids
    #: mean the same person in every sequence that says so.
    camera_id: Optional[int] = None
    shared_ids: bool = False


@dataclass(frozen=True)
class Sequence:
    """A sequence: where it is and which frames are there."""

    #: Name without the detector, and folder.
    name: str
    folder: str
    info: SequenceInfo
    #: Path of each frame that is on disk, by its number, ascending.
    frames: dict[int, str] = field(repr=False)


def find_sequences(root: str, wanted: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Folders of the sequences below ``root``, or below ``root``/train where it has none itself.

    Of the copies for several detectors one is taken: FRCNN, or else SDP, or else DPM.

    Args:
        wanted: names, with or without the detector; none means all.

    Returns:
        The folders in the order of their names, and notes on the copies that were passed over.

    Raises:
        FileNotFoundError: there is no sequence.
        ValueError: one of ``wanted`` is not there.
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
            raise ValueError(f"{root}: no sequence is named {name!r} (there are: {known})")
    notes = [f"{passed} copies of sequences for other detectors are left out"] if passed else []
    return [chosen[name] for name in sorted(chosen)], notes


def sequence_name(folder: str) -> str:
    """Name of a sequence without that of its detector."""
    name = os.path.basename(os.path.normpath(folder))
    match = _DETECTOR.fullmatch(name)
    return match[1] if match else name


def read_sequence(folder: str) -> Sequence:
    """Read ``seqinfo.ini`` and list the frames that are on disk.

    Raises:
        FileNotFoundError: there is no image folder.
        ValueError: a file name is no frame number, or ``seqinfo.ini`` is broken.
    """
    info = _read_info(os.path.join(folder, "seqinfo.ini"))
    images = os.path.join(folder, info.image_folder)
    if not os.path.isdir(images):
        raise FileNotFoundError(f"{images}: no such image folder")
    frames: dict[int, str] = {}
    for file in sorted(os.listdir(images)):
        stem, end = os.path.splitext(file)
        if end.lower() not in _IMAGE_ENDS:
            continue
        path = os.path.join(images, file)
        if not stem.isdecimal() or int(stem) < 1:
            raise ValueError(f"{path}: the name is not the number of a frame, from 1 on")
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
        ValueError: a row has another form; the line names it.
    """
    path = os.path.join(folder, "gt", "gt.txt")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path}: no such file (the benchmark does not give out that of its test sequences)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of a file without rows
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
    # MOT15 has a point in the world behind the flag, which is -1 -1 -1 in two dimensions.
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
    match = _DETECTOR.fullmatch(os.path.basename(folder))
    return ["FRCNN", "SDP", "DPM"].index(match[2]) if match else -1


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
