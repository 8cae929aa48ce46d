"""The embedded data sets, made from a seed: street scenes with people that can be told apart,
things of several classes to be detected, and tracklets of people."""

from kd_search.synthetic.config import PRESETS, GeneratorConfig, SceneConfig
from kd_search.synthetic.generated_set import read_description
from kd_search.synthetic.objects_config import OBJECTS_PRESETS, ObjectsConfig
from kd_search.synthetic.objects_layouts import write_ilsvrc_layout, write_kitti_layout
from kd_search.synthetic.objects_writer import generate_objects
from kd_search.synthetic.tracklets_config import TRACKLETS_PRESETS, TrackletsConfig
from kd_search.synthetic.tracklets_writer import generate_tracklets
from kd_search.synthetic.writer import generate_dataset

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
