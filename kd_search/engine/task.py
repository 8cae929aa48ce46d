"""The task of a config: detection, person search or re-ID, and the data that its network needs."""

from collections.abc import Sequence
from typing import Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet

from kd_search.data.catalog import is_person_search, require_registered
from kd_search.data.detection.loader import train_set_kind
from kd_search.data.detection.register import known_classes
from kd_search.data.reid import is_reid
from kd_search.modeling.meta_arch import PersonSearchRCNN, ReIDNetwork


def network_name(cfg: CfgNode) -> str:
    """Meta-architecture of the network that is trained: of the student where there is a teacher."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.DISTILLATION.STUDENT_META_ARCH if name == "Distiller" else name


def has_id_branch(cfg: CfgNode) -> bool:
    """Whether the network tells people apart: a ``PersonSearchRCNN``, or a subclass of it."""
    return _is_network(cfg, PersonSearchRCNN)


def is_reid_network(cfg: CfgNode) -> bool:
    """Whether the network takes crops: a ``ReIDNetwork``, or a subclass of it."""
    return _is_network(cfg, ReIDNetwork)


def _is_network(cfg: CfgNode, kind: type) -> bool:
    name = network_name(cfg)
    network = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(network, type) and issubclass(network, kind)


def _class_key(cfg: CfgNode) -> Optional[str]:
    """Config key with the number of classes; ``None`` for a network of unknown kind."""
    if _is_network(cfg, GeneralizedRCNN):
        return "MODEL.ROI_HEADS.NUM_CLASSES"
    return "MODEL.RETINANET.NUM_CLASSES" if _is_network(cfg, RetinaNet) else None


def is_search_task(cfg: CfgNode, dataset_name: str) -> bool:
    """Whether a set is evaluated as a search for people, and not as detection alone."""
    return not is_reid(dataset_name) and is_person_search(dataset_name) and has_id_branch(cfg)


def train_task(names: Sequence[str]) -> str:
    """ "reid", "person_search" or "detection": what the sets of ``DATASETS.TRAIN`` are.

    Raises:
        ValueError: they are of several kinds, or one is not registered.
    """
    for name in names:
        require_registered(name)
    crops = [name for name in names if is_reid(name)]
    others = [name for name in names if not is_reid(name)]
    if crops and others:
        raise ValueError(
            f"DATASETS.TRAIN mixes re-ID sets ({', '.join(crops)}) with sets of whole images "
            f"({', '.join(others)}): train on one kind"
        )
    return "reid" if crops else train_set_kind(names)


def check_task(cfg: CfgNode, names: Sequence[str]) -> None:
    """Refuse crops for a detector, and whole images for a re-ID network.

    Sets that are not registered, and networks of other packages, pass.

    Raises:
        ValueError: naming the set and the network.
    """
    takes_images = _class_key(cfg) is not None
    for name in names:
        if name not in DatasetCatalog.list():
            continue
        if is_reid(name) and takes_images:
            raise ValueError(
                f"{name} is a re-ID set, but {network_name(cfg)} needs whole images with boxes: "
                "use MODEL.META_ARCHITECTURE ReIDNetwork, or another set"
            )
        if is_reid_network(cfg) and not is_reid(name):
            crops = f", such as its crops, {name}_crops" if is_person_search(name) else ""
            raise ValueError(f"{name} has whole images, but a ReIDNetwork needs crops{crops}")


def best_metric(cfg: CfgNode) -> str:
    """The metric of ``DATASETS.TEST`` that the best checkpoint has the most of.

    A set that is not registered belongs to a trainer with loaders of its own: the metric is that of
    person search.
    """
    name = cfg.DATASETS.TEST[0]
    if name not in DatasetCatalog.list():
        return "person_search/mAP"
    if is_reid(name):
        return "reid/mAP"
    return "person_search/mAP" if is_search_task(cfg, name) else "bbox/AP"


def check_num_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Compare the network's number of classes with that of plain detection sets.

    Sets that are not registered, or whose classes are told only by their annotations, pass.

    Raises:
        FileNotFoundError: the list of classes of a set is missing.
        ValueError: naming set and key.
    """
    key = _class_key(cfg)
    if key is None:
        return
    for name in names:
        classes = _classes_of(name)
        number = _value(cfg, key)
        if classes is not None and len(classes) != number:
            some = ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")
            raise ValueError(
                f"{key} is {number}, but {name} has {len(classes)} classes ({some}): set {key} "
                f"{len(classes)}"
            )


def _classes_of(name: str) -> Optional[list[str]]:
    if name not in DatasetCatalog.list() or is_reid(name) or is_person_search(name):
        return None
    return known_classes(name)


def _value(cfg: CfgNode, key: str) -> int:
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node
