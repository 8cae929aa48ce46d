"""What is generated: numbers and sizes of the embedded tracklet set."""

from dataclasses import asdict, dataclass
from typing import Any

#: Raised whenever the same config and seed would give other bytes than before.
TRACKLETS_VERSION = 1


@dataclass(frozen=True)
class TrackletsConfig:
    """The whole set. Every identity is seen by every camera; lengths are in pixels."""

    num_train_ids: int = 40
    num_test_ids: int = 24
    num_cameras: int = 4
    #: Of an identity in a camera; of the test identities the first one is the query.
    tracklets_per_camera: int = 2
    #: Frames of the shortest and the longest tracklet.
    min_frames: int = 4
    max_frames: int = 10
    #: Single crops of people without an identity in the test gallery.
    num_distractors: int = 60
    width: int = 64
    height: int = 128
    #: Identities that share the main colours of their clothes; 1 gives everybody their own.
    ids_per_outfit: int = 3
    #: Probability that somebody walks in front.
    occlusion: float = 0.25
    #: Standard deviation of the place and size of a box, as a share of its sides.
    box_noise: float = 0.03
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        for name in ("num_train_ids", "num_test_ids", "ids_per_outfit"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        _require(self.num_train_ids + self.num_test_ids < 10000, "num_test_ids", "is too many")
        _require(2 <= self.num_cameras <= 9, "num_cameras", "must be 2 to 9")
        _require(self.tracklets_per_camera >= 2, "tracklets_per_camera", "must be at least 2")
        _require(
            1 <= self.min_frames <= self.max_frames <= 40,
            "min_frames and max_frames",
            "must rise from at least 1 to at most 40",
        )
        _require(self.num_distractors >= 0, "num_distractors", "must not be negative")
        _require(
            self.width >= 24 and self.height >= 48, "width and height", "must be 24x48 or more"
        )
        _require(0 <= self.occlusion <= 1, "occlusion", "must lie between 0 and 1")
        _require(0 <= self.box_noise <= 0.2, "box_noise", "must lie between 0 and 0.2")
        _require(1 <= self.jpeg_quality <= 100, "jpeg_quality", "must be 1 to 100")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _require(ok: bool, name: str, what: str) -> None:
    if not ok:
        raise ValueError(f"generator setting {name} {what}")


#: Ready-made sizes: "demo" trains in minutes, "tiny" is made in a moment for unit tests.
TRACKLETS_PRESETS: dict[str, TrackletsConfig] = {
    "demo": TrackletsConfig(),
    "tiny": TrackletsConfig(
        num_train_ids=4,
        num_test_ids=3,
        num_cameras=2,
        min_frames=2,
        max_frames=4,
        num_distractors=3,
        width=32,
        height=64,
    ),
}
