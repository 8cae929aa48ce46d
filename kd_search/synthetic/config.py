"""Settings of the generated data sets: sizes, numbers and probabilities."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: Incremented when the same config and seed would no longer give the same bytes.
GENERATOR_VERSION = 2
OBJECTS_VERSION = 1
TRACKLETS_VERSION = 1


def _require(ok: bool, name: str, what: str) -> None:
    if not ok:
        raise ValueError(f"generator setting {name} {what}")


class _Config:
    """Base of the configs."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass

    def num_images(self, split: str) -> int:
        return getattr(self, f"num_{split}_images")

    def num_ids(self, split: str) -> int:
        return getattr(self, f"num_{split}_ids")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            _require(getattr(self, name) >= 1, name, "must be at least 1")


@dataclass(frozen=True)
class SceneConfig:
    """One street scene: image size in pixels, number of people, and difficulty."""

    width: int = 320
    height: int = 192
    #: Heights in pixels, before truncation, of the farthest and the nearest people.
    min_person_height: int = 45
    max_person_height: int = 130
    #: People placed in an image: those with an identity, and all together with passers-by.
    min_labelled: int = 2
    max_labelled: int = 4
    max_people: int = 6
    #: Expected passers-by (``person_id`` -1) per image before the limit of ``max_people``.
    mean_unlabelled: float = 1.0
    #: People with a smaller visible fraction are moved, or dropped if that fails.
    min_visible: float = 0.35
    #: Probability that a person may be truncated by the image border.
    truncation: float = 0.2
    #: Probability that a person is placed partly behind a nearer one.
    overlap: float = 0.35
    jpeg_quality: int = 92


@dataclass(frozen=True)
class GeneratorConfig(_Config):
    """The person search set: identities, cameras, images per split."""

    num_train_ids: int = 60
    num_test_ids: int = 40
    num_train_images: int = 300
    num_test_images: int = 140
    num_cameras: int = 4
    #: Identities that share the main colors of their clothes, so that color alone does not
    #: distinguish them; 1 gives each identity its own colors.
    ids_per_outfit: int = 3
    queries_per_id: int = 2
    scene: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        scene = self.scene
        self._require_positive("num_train_ids", "num_test_ids", "num_train_images")
        self._require_positive("num_test_images", "ids_per_outfit", "queries_per_id")
        _require(self.num_cameras >= 2, "num_cameras", "must be at least 2")
        _require(scene.width >= 64 and scene.height >= 64, "scene", "must be 64x64 or larger")
        _require(
            20 <= scene.min_person_height < scene.max_person_height <= scene.height,
            "scene.min_person_height and scene.max_person_height",
            "must rise from at least 20 to at most the image height",
        )
        _require(
            1 <= scene.min_labelled <= scene.max_labelled <= scene.max_people,
            "scene.min_labelled, scene.max_labelled and scene.max_people",
            "must rise from at least 1",
        )
        _require(0 < scene.min_visible < 1, "scene.min_visible", "must lie between 0 and 1")
        _require(1 <= scene.jpeg_quality <= 100, "scene.jpeg_quality", "must be 1 to 100")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GeneratorConfig":
        """Inverse of :meth:`to_dict`; raises ``ValueError`` on an unknown key."""
        values = dict(values)
        scene = dict(values.pop("scene", {}))
        unknown = set(values) - {f.name for f in fields(cls)}
        unknown |= set(scene) - {f.name for f in fields(SceneConfig)}
        if unknown:
            raise ValueError(f"unknown generator settings: {', '.join(sorted(unknown))}")
        return cls(scene=SceneConfig(**scene), **values)


@dataclass(frozen=True)
class ObjectsConfig(_Config):
    """The multi-class detection set: images per split, and difficulty. Lengths are in pixels."""

    num_train_images: int = 400
    num_test_images: int = 150
    width: int = 160
    height: int = 128
    min_objects: int = 2
    max_objects: int = 6
    #: Length of the longer side of an object before rotation.
    min_size: int = 30
    max_size: int = 72
    #: Objects are rotated by up to this many degrees to either side, and half of them mirrored.
    max_turn: float = 40.0
    #: Objects with a smaller visible fraction are moved, or dropped if that fails.
    min_visible: float = 0.5
    #: Probability that an object is placed partly behind another one.
    overlap: float = 0.35
    #: Mean number of shapes of no class behind the objects.
    clutter: float = 5.0
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        self._require_positive("num_train_images", "num_test_images")
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


@dataclass(frozen=True)
class TrackletsConfig(_Config):
    """The tracklet set. Every identity is seen by every camera; lengths are in pixels."""

    num_train_ids: int = 40
    num_test_ids: int = 24
    num_cameras: int = 4
    #: Of an identity in a camera; the first one of a test identity is the query.
    tracklets_per_camera: int = 2
    #: Frames of the shortest and the longest tracklet.
    min_frames: int = 4
    max_frames: int = 10
    #: Single crops of people without an identity in the test gallery.
    num_distractors: int = 60
    width: int = 64
    height: int = 128
    #: Identities that share the main colors of their clothes; 1 gives each its own.
    ids_per_outfit: int = 3
    #: Probability that a passer-by walks in front.
    occlusion: float = 0.25
    #: Standard deviation of the place and size of a box, as a share of its sides.
    box_noise: float = 0.03
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        self._require_positive("num_train_ids", "num_test_ids", "ids_per_outfit")
        _require(self.num_train_ids + self.num_test_ids < 10000, "num_test_ids", "is too large")
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


#: Presets: "demo" trains in minutes, "tiny" is generated in seconds for unit tests.
PRESETS: dict[str, GeneratorConfig] = {
    "demo": GeneratorConfig(),
    "tiny": GeneratorConfig(
        num_train_ids=6, num_test_ids=4, num_train_images=12, num_test_images=8, num_cameras=2
    ),
}
OBJECTS_PRESETS: dict[str, ObjectsConfig] = {
    "demo": ObjectsConfig(),
    "tiny": ObjectsConfig(num_train_images=16, num_test_images=8, width=96, height=80, max_size=48),
}
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
