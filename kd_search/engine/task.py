"""The task of a config: detection, person search or re-ID, and checks of its data."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet

from kd_search.data.catalog import is_person_search, require_registered
from kd_search.data.detection.loader import train_set_kind
from kd_search.data.detection.register import known_classes
from kd_search.data.reid import is_reid
from kd_search.modeling.meta_arch import PersonSearchRCNN, ReIDNetwork, TwoStepSearch


def network_name(cfg: CfgNode) -> str:
    """Meta-architecture of the network that is trained; of the student for a ``Distiller``."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.DISTILLATION.STUDENT_META_ARCH if name == "Distiller" else name


def has_id_branch(cfg: CfgNode) -> bool:
    """Whether the network is a ``PersonSearchRCNN``, or a subclass of it."""
    return _is_network(cfg, PersonSearchRCNN)


def is_reid_network(cfg: CfgNode) -> bool:
    """Whether the network is a ``ReIDNetwork``, or a subclass of it."""
    return _is_network(cfg, ReIDNetwork)


def network_method(cfg: CfgNode, name: str) -> Optional[Callable[..., Any]]:
    """A class method of the network that replaces a step of its trainer, if it has it."""
    return getattr(_network_class(cfg), name, None)


def _network_class(cfg: CfgNode) -> Any:
    name = network_name(cfg)
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None


def _is_network(cfg: CfgNode, kind: type) -> bool:
    network = _network_class(cfg)
    return isinstance(network, type) and issubclass(network, kind)


def _num_classes(cfg: CfgNode) -> Optional[tuple[str, int]]:
    """Config key and number of classes of a detector; ``None`` for a network of unknown kind."""
    if _is_network(cfg, GeneralizedRCNN):
        return "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if _is_network(cfg, RetinaNet):
        return "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    return None


def is_search_task(cfg: CfgNode, dataset_name: str) -> bool:
    """Whether a set is evaluated as person search, and not as detection only."""
    searches = has_id_branch(cfg) or _is_network(cfg, TwoStepSearch)
    return not is_reid(dataset_name) and is_person_search(dataset_name) and searches


def train_task(names: Sequence[str]) -> str:
    """The task of training sets: "reid", "person_search" or "detection".

    Raises:
        ValueError: the sets are of several tasks, or one is not registered.
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
    """Raise ValueError for a re-ID set with a detector, or whole images with a re-ID network.

    Sets that are not registered, and networks of other packages, are not checked.
    """
    takes_images = _num_classes(cfg) is not None
    for name in names:
        if name not in DatasetCatalog.list():
            continue
        if is_reid(name) and takes_images:
            raise ValueError(
                f"{name} is a re-ID set, but {network_name(cfg)} requires whole images with boxes: "
                "use MODEL.META_ARCHITECTURE ReIDNetwork, or another set"
            )
        if is_reid_network(cfg) and not is_reid(name):
            crops = f", such as its crops, {name}_crops" if is_person_search(name) else ""
            raise ValueError(f"{name} has whole images, but a ReIDNetwork requires crops{crops}")


def best_metric(cfg: CfgNode) -> str:
    """The metric of ``DATASETS.TEST`` that selects the best checkpoint.

    That of person search for a set that is not registered, as of a trainer with its own loaders.
    """
    name = cfg.DATASETS.TEST[0]
    if name not in DatasetCatalog.list():
        return "person_search/mAP"
    if is_reid(name):
        return "reid/mAP"
    return "person_search/mAP" if is_search_task(cfg, name) else "bbox/AP"


def check_num_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Raise ValueError if the network's number of classes is not that of plain detection sets.

    Sets that are not registered, or whose classes are in their annotations only, are not checked.

    Raises:
        FileNotFoundError: the list of classes of a set is missing.
    """
    found = _num_classes(cfg)
    if found is None:
        return
    key, number = found
    for name in names:
        if name not in DatasetCatalog.list() or is_reid(name) or is_person_search(name):
            continue
        classes = known_classes(name)
        if classes is not None and len(classes) != number:
            some = ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")
            raise ValueError(
                f"{key} is {number}, but {name} has {len(classes)} classes ({some}): set {key} "
                f"{len(classes)}"
            )
