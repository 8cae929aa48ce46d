"""Registration of person search sets with Detectron2's catalogs; files are read on first use."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data.catalog import names_of, replace_loaded_metadata, require_registered
from kd_search.data.person_search.coco_json import (
    build_id_map,
    dataset_dicts,
    ids_of_tracks,
    person_ids_of,
    read_coco_json,
)
from kd_search.data.person_search.id_map import IDMap, join_id_maps
from kd_search.data.person_search.prw import attach_queries, query_person_ids, read_query_info
from kd_search.data.person_search.split import LoadedSplit, SplitSource
from kd_search.data.records import Record

logger = logging.getLogger(__name__)

_LOCATE: dict[str, Callable[[], SplitSource]] = {}


@dataclass(frozen=True)
class SplitFiles:
    """Files of one split in COCO-JSON; a :class:`SplitSource`."""

    #: COCO-JSON with ``person_id``.
    json_file: str
    #: Folder that the file names in it are relative to.
    image_root: str
    #: Queries in PRW's text format; test sets only.
    query_info: Optional[str] = None
    #: Numbering of the ids, see :func:`register_person_search_coco`.
    id_space: Optional[str] = None
    #: Key of the identities, see :func:`~kd_search.data.person_search.coco_json.read_coco_json`.
    id_key: str = "person_id"

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Read the split; see :class:`SplitSource`."""
        content = read_coco_json(self.json_file, self.id_key)
        return load_content(
            content,
            self.json_file,
            self.image_root,
            self.query_info,
            {"json_file": self.json_file},
            clip=clip,
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
    """A split from the content of a COCO-JSON file, or of another format in this form.

    Args:
        content: as :func:`~kd_search.data.person_search.coco_json.read_coco_json` returns it.
        where: file or folder, for messages.
        image_root: folder that the file names are relative to.
        query_info: query file of a test set.
        metadata: of the result, besides ``image_root`` and ``query_info``.
        clip: as in :func:`~kd_search.data.person_search.coco_json.load_coco_json`.
    """
    person_ids = person_ids_of(content)
    if query_info is not None:
        person_ids = person_ids + query_person_ids(read_query_info(query_info), person_ids)
    id_map = build_id_map(person_ids, where)
    dicts = dataset_dicts(content, where, image_root, id_map, clip=clip)
    if query_info is not None:
        attach_queries(dicts, query_info, id_map, clip=clip)
    return LoadedSplit(
        dicts,
        id_map,
        {**metadata, "image_root": image_root, "query_info": query_info},
        ids_of_tracks=ids_of_tracks(content),
    )


def register_person_search_coco(
    name: str,
    json_file: str,
    image_root: str,
    query_info: Optional[str] = None,
    *,
    id_space: Optional[str] = None,
) -> None:
    """Register a set of your own: COCO-JSON with ``person_id``, and a query file for a test set.

    Nothing is read before ``DatasetCatalog.get(name)``. That call also puts ``person_ids`` into
    the metadata: the original ids of exactly this split and its queries, in row order.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        json_file: annotations, see :func:`~kd_search.data.person_search.coco_json.load_coco_json`.
        image_root: folder of the images.
        query_info: lines ``pid x y w h frame``, see
            :func:`~kd_search.data.person_search.prw.attach_queries`.
        id_space: name of the numbering of the ids. The checker compares the ids of two splits where
            it is equal; leave it out if train and test have one numbering.
    """
    files = SplitFiles(json_file, image_root, query_info)
    register_split(name, lambda: files, id_space=id_space)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, query_info=query_info)


def register_split(
    name: str, locate: Callable[[], SplitSource], *, id_space: Optional[str] = None
) -> None:
    """Register a split whose files are located on first use.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        locate: returns the files; raises FileNotFoundError with a line that names what to set.
        id_space: numbering of the ids; ``None`` takes that of the files.
    """

    def load() -> list[Record]:
        loaded = locate().load()
        for note in loaded.notes:
            logger.info("%s: %s", name, note)
        person_ids = tuple(loaded.id_map.to_list())
        replace_loaded_metadata(name, {"person_ids": person_ids, **loaded.metadata})
        return loaded.dicts

    DatasetCatalog.register(name, load)
    _LOCATE[name] = locate
    MetadataCatalog.get(name).set(
        thing_classes=["person"], evaluator_type="person_search", id_space=id_space
    )


def locate_split(name: str) -> Optional[SplitSource]:
    """Files of a registered split; ``None`` where it was not registered by this module.

    Raises:
        FileNotFoundError: they are missing; the line names what to set.
        ValueError: there is no data set of that name.
    """
    require_registered(name)
    return _LOCATE[name]() if name in _LOCATE else None


def load_split(name: str, *, clip: bool = True) -> LoadedSplit:
    """Read a registered split.

    Args:
        name: registered name.
        clip: as in :meth:`~kd_search.data.person_search.split.SplitSource.load`; of a set that was
            registered elsewhere, boxes are always those of its dataset dicts.

    Raises:
        FileNotFoundError, ValueError: it is missing, broken or not registered.
    """
    files = locate_split(name)
    if files is None:
        loaded = LoadedSplit(*_load_registered(name))
        loaded.metadata = MetadataCatalog.get(name).as_dict()
    else:
        loaded = files.load(clip=clip)
    loaded.name = name
    loaded.id_space = MetadataCatalog.get(name).get("id_space")
    if loaded.id_space is None and files is not None:
        loaded.id_space = files.id_space
    return loaded


def get_person_search_dicts(names: Union[str, Sequence[str]]) -> tuple[list[Record], IDMap]:
    """Dataset dicts of one registered set, or of several joined, with the id map over them.

    People of several sets are different: their ids become ``"<set>/<id>"`` in the joint map and the
    ``person_id`` of each annotation is its joint row. Sets that share people belong into one
    annotation file.

    Args:
        names: a name, or a sequence of names such as ``cfg.DATASETS.TRAIN``.

    Raises:
        FileNotFoundError, ValueError: a set is missing or broken, or was registered without ids.
    """
    loaded = [(name, *_load_registered(name)) for name in names_of(names)]
    if len(loaded) == 1:
        return loaded[0][1], loaded[0][2]
    joint, rows_of = join_id_maps({name: ids for name, _, ids in loaded})
    for name, dicts, _ in loaded:
        for record in dicts:
            for entry in record.get("annotations", []) + record.get("queries", []):
                row = entry["person_id"]
                entry["person_id"] = rows_of[name][row] if row >= 0 else -1
    return [record for _, dicts, _ in loaded for record in dicts], joint


def get_id_map(names: Union[str, Sequence[str]]) -> IDMap:
    """Id map of one registered set, or the joint one of several; see
    :func:`get_person_search_dicts`. Its length is the number of rows of the ID table."""
    return get_person_search_dicts(names)[1]


def _load_registered(name: str) -> tuple[list[Record], IDMap]:
    require_registered(name)
    dicts = DatasetCatalog.get(name)
    person_ids = MetadataCatalog.get(name).get("person_ids")
    if person_ids is None:
        raise ValueError(
            f"data set {name!r} has no person ids; register it with register_person_search_coco"
        )
    return dicts, IDMap(person_ids)
