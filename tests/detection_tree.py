"""The tiny generated multi-class set in every layout, as tests use it."""

from pathlib import Path

from kd_search.data.generated import register_objects
from kd_search.synthetic import (
    OBJECTS_PRESETS,
    generate_objects,
    write_ilsvrc_layout,
    write_kitti_layout,
)

SEED = 1


def make_tree(folder: Path) -> Path:
    """``$DETECTRON2_DATASETS`` with ``objects``, ``kitti`` and ``ILSVRC``."""
    generate_objects(folder / "objects", OBJECTS_PRESETS["tiny"], SEED, progress=False)
    write_kitti_layout(folder / "objects", folder / "kitti")
    write_ilsvrc_layout(folder / "objects", folder / "ILSVRC")
    return folder


def register_tiny_objects(tree: Path, prefix: str) -> tuple[str, str]:
    """Register the set of a tree; its two names."""
    register_objects(str(tree / "objects"), prefix)
    return f"{prefix}_train", f"{prefix}_test"
