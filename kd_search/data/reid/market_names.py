"""File names of Market-1501 and of the sets that name their crops alike."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

#: 0002_c1s1_000451_03.jpg of Market-1501, 0002_c1_f0044158.jpg of DukeMTMC-reID.
_NAME = re.compile(r"(-?\d+)_c(\d+)(?:s(\d+))?_f?(\d+)(?:_(\d+))?(?!\d)")

#: Frames between two crops of one tracklet at most: five seconds of Market-1501's cameras.
FRAME_GAP = 125


@dataclass(frozen=True, order=True)
class CropName:
    """What a name tells; crops sort by identity, camera, sequence, frame and detection."""

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


def parse_crop_name(name: str, where: str) -> CropName:
    """
    Args:
        name: file name without its folder.
        where: folder, for messages.

    Raises:
        ValueError: it is none of these names.
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
    """Crops of one identity in one camera and sequence, cut where more than ``gap`` frames lie
    between two of them.

    Market-1501 does not give its tracklets, but they follow from its names. Junk and distractors,
    whose number stands for many people, stay single images.

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
