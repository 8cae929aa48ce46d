"""What is generated: sizes, numbers and probabilities of the embedded data set."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: Raised whenever the same config and seed would give other bytes than before.
GENERATOR_VERSION = 2


@dataclass(frozen=True)
class SceneConfig:
    """One scene: image size in pixels, how many people, and how hard they are to see."""

    width: int = 320
    height: int = 192
    #: Heights of people in pixels, before truncation, of the farthest and the nearest.
    min_person_height: int = 45
    max_person_height: int = 130
    #: People placed in an image: those with an identity, and all together with passers-by.
    min_labelled: int = 2
    max_labelled: int = 4
    max_people: int = 6
    #: Expected passers-by (``person_id`` -1) per image before the cap by ``max_people``.
    mean_unlabelled: float = 1.0
    #: People of whom less than this fraction can be seen are moved, or dropped if that fails.
    min_visible: float = 0.35
    #: Probability that somebody may be cut by the image border.
    truncation: float = 0.2
    #: Probability that somebody is put partly behind somebody nearer.
    overlap: float = 0.35
    jpeg_quality: int = 92


@dataclass(frozen=True)
class GeneratorConfig:
    """The whole data set: identities, cameras, images per split."""

    num_train_ids: int = 60
    num_test_ids: int = 40
    num_train_images: int = 300
    num_test_images: int = 140
    num_cameras: int = 4
    #: Identities that share the main colours of their clothes, so that colour alone does not tell
    #: them apart; 1 gives everybody colours of their own.
    ids_per_outfit: int = 3
    queries_per_id: int = 2
    scene: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        scene = self.scene
        for name in ("num_train_ids", "num_test_ids", "num_train_images", "num_test_images"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        _require(self.num_cameras >= 2, "num_cameras", "must be at least 2")
        _require(self.ids_per_outfit >= 1, "ids_per_outfit", "must be at least 1")
        _require(self.queries_per_id >= 1, "queries_per_id", "must be at least 1")
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

    def num_ids(self, split: str) -> int:
        return self.num_train_ids if split == "train" else self.num_test_ids

    def num_images(self, split: str) -> int:
        return self.num_train_images if split == "train" else self.num_test_images

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GeneratorConfig":
        """Inverse of :meth:`to_dict`; raises ``ValueError`` on a key that does not exist."""
        values = dict(values)
        scene = dict(values.pop("scene", {}))
        for given, target in ((values, cls), (scene, SceneConfig)):
            unknown = set(given) - {f.name for f in fields(target)}
            if unknown:
                raise ValueError(f"unknown generator settings: {', '.join(sorted(unknown))}")
        return cls(scene=SceneConfig(**scene), **values)


def _require(ok: bool, name: str, what: str) -> None:
    if not ok:
        raise ValueError(f"generator setting {name} {what}")


#: Ready-made sizes: "demo" trains in minutes, "tiny" is made in a moment for unit tests.
PRESETS: dict[str, GeneratorConfig] = {
    "demo": GeneratorConfig(),
    "tiny": GeneratorConfig(
        num_train_ids=6,
        num_test_ids=4,
        num_train_images=12,
        num_test_images=8,
        num_cameras=2,
    ),
}
