"""Registration of plain detection sets with Detectron2's catalogs.

A plain detection set has boxes and classes but no identities. Those of this package are read on
first use; PASCAL VOC, COCO and users' own are registered through Detectron2.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Union

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from kd_search.data.catalog import require_registered, set_metadata
from kd_search.data.records import Record

#: ``load(strict) -> dataset dicts``. Strict: boxes are clipped to their image, empty ones are left
#: out, and invalid entries raise. Otherwise boxes are as on disk, an unknown class has
#: ``category_id`` -1, and a missing or unreadable image has width and height 0.
Load = Callable[[bool], list[Record]]

_LOAD: dict[str, Load] = {}
_CLASSES: dict[str, Callable[[], list[str]]] = {}


def register_detection_set(
    name: str, load: Load, classes: Union[Sequence[str], Callable[[], list[str]]]
) -> None:
    """Register a set whose files are located and read on first use.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        load: see :data:`Load`; raises FileNotFoundError with a line that names what to set.
        classes: names of the classes, in the order of ``category_id``, or a function that reads
            them.
    """
    if not callable(classes):
        MetadataCatalog.get(name).set(thing_classes=list(classes))
    read_classes = classes if callable(classes) else lambda: list(classes)

    def load_strictly() -> list[Record]:
        dicts = load(True)
        set_metadata(name, thing_classes=read_classes())
        return dicts

    DatasetCatalog.register(name, load_strictly)
    _LOAD[name], _CLASSES[name] = load, read_classes
    MetadataCatalog.get(name).set(evaluator_type="coco")


def load_coco(name: str, json_file: str, image_root: str, **options: Any) -> list[Record]:
    """Dataset dicts of a registered set in COCO-JSON, which may differ from those of a former load.

    Args:
        name: registered name.
        json_file: annotations.
        image_root: folder of the images.
        options: of Detectron2's ``load_coco_json``.
    """
    set_metadata(name, json_file=json_file, image_root=image_root)
    # Detectron2 sets the mapping of the classes, and would refuse another one.
    vars(MetadataCatalog.get(name)).pop("thing_dataset_id_to_contiguous_id", None)
    return load_coco_json(json_file, image_root, name, **options)


def known_classes(name: str) -> Optional[list[str]]:
    """Class names of a registered set; ``None`` if only its annotations contain them.

    Raises:
        FileNotFoundError, ValueError: the file of the classes is missing or broken.
    """
    if name in _CLASSES:
        return _CLASSES[name]()
    classes = MetadataCatalog.get(name).get("thing_classes")
    return None if classes is None else list(classes)


def load_detection_set(name: str, *, strict: bool = True) -> list[Record]:
    """Dataset dicts of a registered set.

    Args:
        name: registered name.
        strict: ``False`` returns a set that this package registered as it is on disk, for checking
            it; see :data:`Load`.

    Raises:
        FileNotFoundError, ValueError: the set is missing, broken or not registered; one line that
            names it.
    """
    require_registered(name)
    if name in _LOAD and not strict:
        dicts = _LOAD[name](False)
        set_metadata(name, thing_classes=known_classes(name) or [])
        return dicts
    with clear_errors(name):
        dicts = DatasetCatalog.get(name)
    if not dicts:
        raise ValueError(f"data set {name!r} holds no image")
    return dicts


@contextlib.contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turn the errors of Detectron2's loaders into one line.

    Args:
        name: of the set, for messages.

    Raises:
        FileNotFoundError: a file of the set is missing.
        ValueError: an assertion of Detectron2 failed.
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is None:  # raised by this package, with a complete message
            raise
        # Detectron2's own sets are in the same folder.
        raise FileNotFoundError(
            f"{name}: {error.filename} is missing; set DETECTRON2_DATASETS to the folder that "
            "holds the data sets (see docs/datasets.md)"
        ) from None
    except AssertionError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error
