from kd_search.checkpoint.checkpointer import PersonSearchCheckpointer, load_trained
from kd_search.checkpoint.foreign import (
    is_torchvision_resnet,
    load_arrays_pickle,
    rename_torchvision_resnet,
)
from kd_search.checkpoint.plain import to_plain

__all__ = [
    "PersonSearchCheckpointer",
    "is_torchvision_resnet",
    "load_arrays_pickle",
    "load_trained",
    "rename_torchvision_resnet",
    "to_plain",
]
