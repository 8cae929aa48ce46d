from kd_search.checkpoint.checkpointer import PersonSearchCheckpointer
from kd_search.checkpoint.plain import to_plain
from kd_search.checkpoint.safe_pickle import load_arrays_pickle
from kd_search.checkpoint.torchvision_names import is_torchvision_resnet, rename_torchvision_resnet
from kd_search.checkpoint.trained_weights import load_trained

__all__ = [
    "PersonSearchCheckpointer",
    "is_torchvision_resnet",
    "load_arrays_pickle",
    "load_trained",
    "rename_torchvision_resnet",
    "to_plain",
]
