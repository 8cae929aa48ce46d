"""Registers person search data sets with Detectron2's catalogs; files are read on first use."""

import logging
from dataclasses import dataclass
from typing import Any, Callable, Optional

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data.metadata import replace_metadata
from kd_search.data.person_search.coco_json import (
    build_id_map,
    dataset_dicts,
    person_ids_of,
    read_coco_json,
)
from kd_search.data.person_search.id_map import IDMap
from kd_search.data.person_search.prw import attach_queries, query_person_ids, read_query_info
from kd_search.data.person_search.split import LoadedSplit, SplitSource

logger = logging.getLogger(__name__)

_LOCATE: dict[str, Callable[[], SplitSource]] = {}


@dataclass(frozen=True)
class SplitFiles:
    """Where the files of one split in COCO-JSON lie; a :class:`SplitSource`."""

    #: COCO-JSON with ``person_id``.
    json_file: str
    #: Folder that the file names in it are relative to.
    image_root: str
    #: Queries in PRW's text format; test sets only.
    query_info: Optional[str] = None
    #: Numbering that the ids belong to, see :func:`register_person_search_coco`.
    id_space: Optional[str] = None

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Dataset dicts of the split with its queries, and the id map over both."""
        content = read_coco_json(self.json_file)
        metadata = {"json_file": self.json_file, "image_root": self.image_root}
        metadata["query_info"] = self.query_info
        return load_content(
            content, self.json_file, self.image_root, self.query_info, metadata, clip=clip
        )


def load_content(
    content: dict[str, Any],
    where: str,
    image_root: str,
    query_info: Optional[str],
    metadata: dict[str, Any],
    *,
    clip: bool,
) -> LoadedSplit:
    """A split from the content of a COCO-JSON file, or of what was brought into that form.

    Args:
        content: as :func:`~kd_search.data.person_search.coco_json.read_coco_json` returns it.
        where: file or folder, for messages.
        image_root: folder that the file names are relative to.
        query_info: query file of a test set.
        metadata: of the result.
        clip: as in :func:`~kd_search.data.person_search.coco_json.load_coco_json`.
    """
    person_ids = person_ids_of(content)
    if query_info is not None:
        person_ids = person_ids + query_person_ids(read_query_info(query_info), person_ids)
    id_map = build_id_map(person_ids, where)
    dicts = dataset_dicts(content, where, image_root, id_map, clip=clip)
    if query_info is not None:
        attach_queries(dicts, query_info, id_map, clip=clip)
    return LoadedSplit(dicts, id_map, metadata)


def register_person_search_coco(
    name: str,
    json_file: str,
    image_root: str,
    query_info: Optional[str] = None,
    *,
    id_space: Optional[str] = None,
) -> None:
    """Register people's own data: COCO-JSON with ``person_id``, and a query file for a test set.

    Nothing is read before ``DatasetCatalog.get(name)``. That call also puts ``person_ids`` into
    the metadata: the original ids of exactly this split and its queries, in row order.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        json_file: annotations, see :func:`~kd_search.data.person_search.coco_json.load_coco_json`.
        image_root: folder of the images.
        query_info: lines ``pid x y w h frame``, see
            :func:`~kd_search.data.person_search.prw.attach_queries`.
        id_space: name of the numbering that the ids belong to. The checker compares the ids of two
            splits only where this is equal; leave it out if train and test number people alike.
    """
    files = SplitFiles(json_file, image_root, query_info)
    register_split(name, lambda: files, id_space=id_space)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, query_info=query_info)


def register_split(
    name: str, locate: Callable[[], SplitSource], *, id_space: Optional[str] = None
) -> None:
    """Register a split whose files are located when it is first used.

    Args:
        locate: returns the files; raises FileNotFoundError with a line that says what to set.
        id_space: numbering of the ids; ``None`` takes that of the files.
    """

    def load() -> list[dict[str, Any]]:
        loaded = locate().load()
        for note in loaded.notes:
            logger.info("%s: %s", name, note)
        replace_metadata(name, {"person_ids": tuple(loaded.id_map.to_list()), **loaded.metadata})
        return loaded.dicts

    DatasetCatalog.register(name, load)
    _LOCATE[name] = locate
    MetadataCatalog.get(name).set(
        thing_classes=["person"], evaluator_type="person_search", id_space=id_space
    )


def locate_split(name: str) -> Optional[SplitSource]:
    """Files of a registered split; ``None`` where it was not registered by this module.

    Raises:
        FileNotFoundError: they are missing; the line says what to set.
        ValueError: there is no data set of that name.
    """
    _require_registered(name)
    return _LOCATE[name]() if name in _LOCATE else None


def registered_id_space(name: str) -> Optional[str]:
    """The ``id_space`` that a split was registered with, or else that of its files."""
    id_space = MetadataCatalog.get(name).get("id_space")
    if id_space is None and name in _LOCATE:
        id_space = _LOCATE[name]().id_space
    return id_space


def load_split(files: SplitSource, *, clip: bool = True) -> tuple[list[dict[str, Any]], IDMap]:
    """Dataset dicts of a split with its queries, and the id map over both.

    Args:
        clip: as in :meth:`~kd_search.data.person_search.split.SplitSource.load`.
    """
    loaded = files.load(clip=clip)
    return loaded.dicts, loaded.id_map


def get_person_search_dicts(names: Any) -> tuple[list[dict[str, Any]], IDMap]:
    """Dataset dicts of one registered set, or of several joined, with the id map over them.

    Several sets number people apart, so their ids become ``"<set>/<id>"`` in the joint map and
    the ``person_id`` of each annotation is moved to its joint row. Two sets with the same people
    belong into one annotation file.

    Args:
        names: a name, or a sequence of names such as ``cfg.DATASETS.TRAIN``.

    Raises:
        FileNotFoundError, ValueError: a set is missing or broken, or was registered without ids.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no data set is named; set DATASETS.TRAIN or DATASETS.TEST")
    loaded = [(name, *_load_registered(name)) for name in names]
    if len(loaded) == 1:
        return loaded[0][1], loaded[0][2]
    joint = IDMap(f"{name}/{original}" for name, _, ids in loaded for original in ids.to_list())
    for name, dicts, ids in loaded:
        rows = [joint.row(f"{name}/{original}") for original in ids.to_list()]
        for record in dicts:
            for entry in record.get("annotations", []) + record.get("queries", []):
                entry["person_id"] = rows[entry["person_id"]] if entry["person_id"] >= 0 else -1
    return [record for _, dicts, _ in loaded for record in dicts], joint


def get_id_map(names: Any) -> IDMap:
    """Id map of one registered set, or the joint one of several; see
    :func:`get_person_search_dicts`. Its length is the number of rows of the ID table."""
    return get_person_search_dicts(names)[1]


def _load_registered(name: str) -> tuple[list[dict[str, Any]], IDMap]:
    _require_registered(name)
    dicts = DatasetCatalog.get(name)
    person_ids = MetadataCatalog.get(name).get("person_ids")
    if person_ids is None:
        raise ValueError(
            f"data set {name!r} has no person ids; register it with register_person_search_coco"
        )
    return dicts, IDMap(person_ids)


def _require_registered(name: str) -> None:
    if name not in DatasetCatalog.list():
        known = ", ".join(n for n in sorted(DatasetCatalog.list()) if _is_person_search(n))
        raise ValueError(f"data set {name!r} is not registered (known: {known})")


def _is_person_search(name: str) -> bool:
    return MetadataCatalog.get(name).get("evaluator_type") == "person_search"
