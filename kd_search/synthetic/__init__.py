"""Data sets generated from a seed: street scenes with people, objects of several classes, and
tracklets of people."""

from kd_search.synthetic.config import (
    OBJECTS_PRESETS,
    PRESETS,
    TRACKLETS_PRESETS,
    GeneratorConfig,
    ObjectsConfig,
    SceneConfig,
    TrackletsConfig,
)
from kd_search.synthetic.generated_set import read_description
from kd_search.synthetic.objects_layouts import write_ilsvrc_layout, write_kitti_layout
from kd_search.synthetic.objects_writer import generate_objects
from kd_search.synthetic.people_writer import generate_dataset
from kd_search.synthetic.tracklets_writer import generate_tracklets

__all__ = [
    "OBJECTS_PRESETS",
    "PRESETS",
    "TRACKLETS_PRESETS",
    "GeneratorConfig",
    "ObjectsConfig",
    "SceneConfig",
    "TrackletsConfig",
    "generate_dataset",
    "generate_objects",
    "generate_tracklets",
    "read_description",
    "write_ilsvrc_layout",
    "write_kitti_layout",
]
