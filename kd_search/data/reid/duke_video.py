"""DukeMTMC-VideoReID: tracklets in folders."""

import os
import re

from kd_search.data.reid.folders import folder_names, image_names
from kd_search.data.reid.register import register_reid_set
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets

#: 0001_C5_F0001_X201230.jpg: identity, camera, frame of the tracklet, frame of the video; older
#: copies have 0001C5F0001X201230.jpg.
_NAME = re.compile(r"(\d+)_?C(\d+)_?F(\d+)(?:_?X(\d+))?")

_FOLDERS = {"train": (("train", "train"),), "test": (("query", "query"), ("gallery", "gallery"))}
_RELEASE = "DukeMTMC-VideoReID"


def load_duke_video(root: str, split: str, *, hint: str = "") -> LoadedReID:
    """One split: ``<train, query or gallery>/<identity>/<tracklet>/<frame>.jpg``.

    Args:
        root: folder of ``train``, ``query`` and ``gallery``, or the one that holds the release's.
        split: "train" or "test".
        hint: what to do if a folder is missing.

    Raises:
        FileNotFoundError, ValueError: a folder is missing, a tracklet is empty, or the name of an
            image does not fit its folder.
    """
    if split not in _FOLDERS:
        raise ValueError(f"{root}: the split {split!r} is neither 'train' nor 'test'")
    if os.path.isdir(os.path.join(root, _RELEASE)):
        root = os.path.join(root, _RELEASE)
    tracklets = []
    for folder, role in _FOLDERS[split]:
        top = os.path.join(root, folder)
        for identity in folder_names(top, hint):
            for tracklet in folder_names(os.path.join(top, identity)):
                path = os.path.join(top, identity, tracklet)
                tracklets.append(_read_tracklet(path, identity, role))
    return load_tracklets(tracklets, root, reid_root=root)


def _read_tracklet(path: str, identity: str, role: str) -> Tracklet:
    names = image_names(path)
    if not names:
        raise ValueError(f"{path}: no image in this tracklet")
    if not identity.isdecimal():
        raise ValueError(f"{path}: the folder {identity} is not the number of an identity")
    frames = []
    for name in names:
        match = _NAME.match(name)
        if match is None:
            raise ValueError(f"{path}: {name} is not named like 0001_C5_F0001_X201230.jpg")
        if int(match[1]) != int(identity):
            raise ValueError(f"{path}: {name} is not of identity {identity}")
        frames.append((int(match[3]), int(match[2]), int(match[4] or 0), name))
    cameras = {camera for _, camera, _, _ in frames}
    if len(cameras) > 1:
        raise ValueError(f"{path}: images of cameras {sorted(cameras)} in one tracklet")
    frames.sort()
    files = tuple(os.path.join(path, name) for *_, name in frames)
    return Tracklet(files, int(identity), cameras.pop(), role, frame_id=frames[0][2])


def register_duke_video(name: str, root: str, split: str, *, replace: bool = False) -> None:
    """Register a split of DukeMTMC-VideoReID; see :func:`load_duke_video`."""
    register_reid_set(name, lambda: load_duke_video(root, split), replace=replace)
