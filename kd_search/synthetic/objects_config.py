"""What is generated: classes, sizes and numbers of the embedded multi-class detection set."""

from dataclasses import asdict, dataclass
from typing import Any

#: Raised whenever the same config and seed would give other bytes than before.
OBJECTS_VERSION = 1


@dataclass(frozen=True)
class ObjectsConfig:
    """The whole set: images per split, and how hard a scene is. Lengths are in pixels."""

    num_train_images: int = 400
    num_test_images: int = 150
    width: int = 160
    height: int = 128
    min_objects: int = 2
    max_objects: int = 6
    #: Length of the longer side of a thing before it is turned, of the smallest and the largest.
    min_size: int = 30
    max_size: int = 72
    #: Things are turned by up to this many degrees to either side, and half of them mirrored.
    max_turn: float = 40.0
    #: Things of which less than this fraction can be seen are moved, or dropped if that fails.
    min_visible: float = 0.5
    #: Probability that a thing is put partly behind another one.
    overlap: float = 0.35
    #: Mean number of shapes of no class that lie behind the things.
    clutter: float = 5.0
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        for name in ("num_train_images", "num_test_images"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        _require(self.width >= 64 and self.height >= 64, "width and height", "must be 64 or more")
        _require(
            1 <= self.min_objects <= self.max_objects,
            "min_objects and max_objects",
            "must rise from at least 1",
        )
        _require(
            12 <= self.min_size <= self.max_size <= min(self.width, self.height),
            "min_size and max_size",
            "must rise from at least 12 to at most the shorter side of the image",
        )
        _require(0 < self.min_visible < 1, "min_visible", "must lie between 0 and 1")
        _require(0 <= self.overlap <= 1, "overlap", "must lie between 0 and 1")
        _require(0 <= self.max_turn <= 180, "max_turn", "must lie between 0 and 180")
        _require(self.clutter >= 0, "clutter", "must not be negative")
        _require(1 <= self.jpeg_quality <= 100, "jpeg_quality", "must be 1 to 100")

    def num_images(self, split: str) -> int:
        return self.num_train_images if split == "train" else self.num_test_images

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _require(ok: bool, name: str, what: str) -> None:
    if not ok:
        raise ValueError(f"generator setting {name} {what}")


#: Ready-made sizes: "demo" trains in minutes, "tiny" is made in a moment for unit tests.
OBJECTS_PRESETS: dict[str, ObjectsConfig] = {
    "demo": ObjectsConfig(),
    "tiny": ObjectsConfig(num_train_images=16, num_test_images=8, width=96, height=80, max_size=48),
}
