"""Registration of re-ID sets with Detectron2's catalogs; files are read on first use."""

import logging
from collections.abc import Sequence
from typing import Callable, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data.catalog import (
    is_reid,
    names_of,
    replace_loaded_metadata,
    require_registered,
    unregister,
)
from kd_search.data.person_search.id_map import IDMap, join_id_maps
from kd_search.data.records import Record
from kd_search.data.reid.samples import LoadedReID

logger = logging.getLogger(__name__)

#: Metadata of a re-ID set after it was loaded: ``person_ids`` (original ids in row order),
#: ``input_size`` (height, width), ``junk_rule`` ("camera": samples of the same identity in the same
#: known camera are left out of a query's gallery; "frames": only where they are at most
#: ``junk_frames`` frames away) and ``gallery_images`` ("first" or "all": the frames of a tracklet
#: that are in a gallery of images).
Load = Callable[[], LoadedReID]


def register_reid_set(name: str, load: Load, *, replace: bool = False) -> None:
    """Register a re-ID set.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        load: called when the set is used; raises FileNotFoundError with a line that names what to
            set, or ValueError with one that names file and entry.
        replace: instead of a set of that name.
    """

    def load_samples() -> list[Record]:
        loaded = load()
        for note in loaded.notes:
            logger.info("%s: %s", name, note)
        person_ids = tuple(loaded.id_map.to_list())
        replace_loaded_metadata(name, {"person_ids": person_ids, **loaded.metadata})
        return loaded.samples

    if replace:
        unregister(name)
    DatasetCatalog.register(name, load_samples)
    MetadataCatalog.get(name).set(evaluator_type="reid")


def get_reid_samples(names: Union[str, Sequence[str]]) -> tuple[list[Record], IDMap]:
    """Samples of one registered re-ID set, or of several joined, with the id map over them.

    Identities of several sets are different: their ids become ``"<set>/<id>"`` in the joint map.
    Samples and tracklets are numbered consecutively.

    Args:
        names: a name, or a sequence of names such as ``cfg.DATASETS.TRAIN``.

    Raises:
        FileNotFoundError, ValueError: a set is missing, broken or no re-ID set.
    """
    loaded = [(name, *_load(name)) for name in names_of(names)]
    if len(loaded) == 1:
        return loaded[0][1], loaded[0][2]
    joint, rows_of = join_id_maps({name: ids for name, _, ids in loaded})
    samples: list[Record] = []
    first_tracklet = 0
    for name, own, _ in loaded:
        next_tracklet = first_tracklet
        for sample in own:
            row = sample["person_id"]
            sample["person_id"] = rows_of[name][row] if row >= 0 else -1
            sample["sample_id"] = len(samples)
            sample["tracklet_id"] += first_tracklet
            next_tracklet = max(next_tracklet, sample["tracklet_id"] + 1)
            samples.append(sample)
        first_tracklet = next_tracklet
    return samples, joint


def get_reid_id_map(names: Union[str, Sequence[str]]) -> IDMap:
    """Id map of one registered re-ID set, or the joint one of several."""
    return get_reid_samples(names)[1]


def _load(name: str) -> tuple[list[Record], IDMap]:
    require_registered(name)
    if not is_reid(name):
        raise ValueError(
            f"data set {name!r} is no re-ID set; crops of a person search set are named "
            f"'{name}_crops'"
        )
    samples = DatasetCatalog.get(name)
    return samples, IDMap(MetadataCatalog.get(name).person_ids)
