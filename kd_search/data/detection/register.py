"""Registers plain detection sets with Detectron2's catalogs, and tells what it knows of any set.

A plain detection set has boxes and classes but no identities. Those of this package are read when
they are first used; PASCAL VOC, COCO and people's own come through Detectron2's registration.
"""

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

#: ``load(strict) -> dataset dicts``. Strict: boxes are clipped to their image, the empty ones left
#: out, and what cannot be used raises. Otherwise boxes are as on disk, an unknown class has
#: ``category_id`` -1, and an image that is missing or no image has width and height 0.
Load = Callable[[bool], list[dict[str, Any]]]

_LOAD: dict[str, Load] = {}
_CLASSES: dict[str, Callable[[], list[str]]] = {}


def register_detection_set(
    name: str, load: Load, classes: Union[Sequence[str], Callable[[], list[str]]]
) -> None:
    """Register a set whose files are located and read when it is first used.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        load: see :data:`Load`; raises FileNotFoundError with a line that says what to set.
        classes: names of the classes, in the order of ``category_id``, or what reads them.
    """
    if not callable(classes):
        MetadataCatalog.get(name).set(thing_classes=list(classes))
    read_classes = classes if callable(classes) else lambda: list(classes)

    def load_strictly() -> list[dict[str, Any]]:
        dicts = load(True)
        _set_classes(name, read_classes())
        return dicts

    DatasetCatalog.register(name, load_strictly)
    _LOAD[name], _CLASSES[name] = load, read_classes
    MetadataCatalog.get(name).set(evaluator_type="coco")


def is_person_search(name: str) -> bool:
    """Whether a registered set has identities."""
    metadata = MetadataCatalog.get(name)
    return (
        metadata.get("evaluator_type") == "person_search" or metadata.get("person_ids") is not None
    )


def require_registered(name: str) -> None:
    """
    Raises:
        ValueError: there is no data set of that name; the line names the ones most like it.
    """
    known = DatasetCatalog.list()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f", did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"data set {name!r} is not registered{hint}")


def known_classes(name: str) -> Optional[list[str]]:
    """Class names of a registered set without reading its annotations; ``None`` if it must be read.

    Raises:
        FileNotFoundError, ValueError: the list of classes lies in a file that is missing or broken.
    """
    if name in _CLASSES:
        return _CLASSES[name]()
    classes = MetadataCatalog.get(name).get("thing_classes")
    return None if classes is None else list(classes)


def load_detection_set(name: str, *, strict: bool = True) -> list[dict[str, Any]]:
    """Dataset dicts of a registered set.

    Args:
        name: registered name.
        strict: ``False`` gives the set as it is on disk, for checking it, where it was registered
            by this package; see :data:`Load`.

    Raises:
        FileNotFoundError, ValueError: the set is missing, broken or not registered; one line that
            names it.
    """
    require_registered(name)
    if name in _LOAD and not strict:
        dicts = _LOAD[name](False)
        _set_classes(name, known_classes(name) or [])
        return dicts
    with clear_errors(name):
        dicts = DatasetCatalog.get(name)
    if not dicts:
        raise ValueError(f"data set {name!r} holds no image")
    return dicts


@contextlib.contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turns what Detectron2 raises while it reads sets into one line.

    Args:
        name: what is read, for messages.

    Raises:
        FileNotFoundError: a file that Detectron2 looked for is missing.
        ValueError: an assertion of Detectron2 failed.
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is None:  # raised by this package, with all that is to be said
            raise
        # Detectron2 looks for its own sets in the same folder.
        raise FileNotFoundError(
            f"{name}: {error.filename} is missing; set DETECTRON2_DATASETS to the folder that "
            "holds the data sets (see docs/datasets.md)"
        ) from None
    except AssertionError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error


def _set_classes(name: str, classes: list[str]) -> None:
    # Metadata refuses to change a value, but files may have been made anew since they were read.
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes", classes) != classes:
        del metadata.thing_classes
    metadata.thing_classes = classes
