"""DukeMTMC-VideoReID: tracklets in folders."""

import os
import re

from kd_search.data.io.files import folder_names, image_names
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets, require_split

#: 0001_C5_F0001_X201230.jpg: identity, camera, frame of the tracklet, frame of the video; older
#: copies have 0001C5F0001X201230.jpg.
_NAME = re.compile(r"(\d+)_?C(\d+)_?F(\d+)(?:_?X(\d+))?")

#: Folders, whose names are the roles.
_FOLDERS = {"train": ("train",), "test": ("query", "gallery")}
_RELEASE = "DukeMTMC-VideoReID"


def load_duke_video(root: str, split: str, *, hint: str = "") -> LoadedReID:
    """One split: ``<train, query or gallery>/<identity>/<tracklet>/<frame>.jpg``.

    Args:
        root: folder of ``train``, ``query`` and ``gallery``, or the one that holds the release's.
        split: "train" or "test".
        hint: what to do if a folder is missing.

    Raises:
        FileNotFoundError, ValueError: a folder is missing, a tracklet is empty, or the name of an
            image does not match its folder.
    """
    require_split(split, root)
    release = os.path.join(root, _RELEASE)
    root = release if os.path.isdir(release) else root
    tracklets = []
    for role in _FOLDERS[split]:
        top = os.path.join(root, role)
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
