"""Registers re-ID sets with Detectron2's catalogs; files are read on first use."""

import logging
from collections.abc import Sequence
from typing import Any, Callable, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data.detection.register import require_registered
from kd_search.data.metadata import replace_metadata
from kd_search.data.person_search.id_map import IDMap
from kd_search.data.reid.samples import LoadedReID

logger = logging.getLogger(__name__)

#: Metadata of a re-ID set after it was loaded: ``person_ids`` (original ids in row order),
#: ``input_size`` (height, width), ``junk_rule`` ("camera": the same identity in the same known
#: camera is left out of a query's gallery; "frames": only where it is not more than
#: ``junk_frames`` frames away) and ``gallery_images`` ("first" or "all": which frames of a tracklet
#: are searched where the gallery holds images).
Load = Callable[[], LoadedReID]


def register_reid_set(name: str, load: Load, *, replace: bool = False) -> None:
    """Register a re-ID set.

    Args:
        name: name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        load: called when the set is used; raises FileNotFoundError with a line that says what to
            set, or ValueError with one that names file and entry.
        replace: instead of a set of that name.
    """

    def load_samples() -> list[dict[str, Any]]:
        loaded = load()
        for note in loaded.notes:
            logger.info("%s: %s", name, note)
        values = {"person_ids": tuple(loaded.id_map.to_list()), **loaded.metadata}
        replace_metadata(name, values)
        return loaded.samples

    if replace and name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, load_samples)
    MetadataCatalog.get(name).set(evaluator_type="reid")


def is_reid(name: str) -> bool:
    """Whether a registered set is one of crops or tracklets."""
    return MetadataCatalog.get(name).get("evaluator_type") == "reid"


def get_reid_samples(names: Union[str, Sequence[str]]) -> tuple[list[dict[str, Any]], IDMap]:
    """Samples of one registered re-ID set, or of several joined, with the id map over them.

    Several sets number identities apart, so their ids become ``"<set>/<id>"`` in the joint map;
    samples and tracklets are numbered on.

    Args:
        names: a name, or a sequence of names such as ``cfg.DATASETS.TRAIN``.

    Raises:
        FileNotFoundError, ValueError: a set is missing, broken or no re-ID set.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no data set is named; set DATASETS.TRAIN or DATASETS.TEST")
    loaded = [(name, *_load(name)) for name in names]
    if len(loaded) == 1:
        return loaded[0][1], loaded[0][2]
    joint = IDMap(f"{name}/{original}" for name, _, ids in loaded for original in ids.to_list())
    samples: list[dict[str, Any]] = []
    first_tracklet = 0
    for name, own, ids in loaded:
        rows = [joint.row(f"{name}/{original}") for original in ids.to_list()]
        next_tracklet = first_tracklet
        for sample in own:
            row = sample["person_id"]
            sample["person_id"] = rows[row] if row >= 0 else -1
            sample["sample_id"] = len(samples)
            sample["tracklet_id"] += first_tracklet
            next_tracklet = max(next_tracklet, sample["tracklet_id"] + 1)
            samples.append(sample)
        first_tracklet = next_tracklet
    return samples, joint


def get_reid_id_map(names: Union[str, Sequence[str]]) -> IDMap:
    """Id map of one registered re-ID set, or the joint one of several."""
    return get_reid_samples(names)[1]


def _load(name: str) -> tuple[list[dict[str, Any]], IDMap]:
    require_registered(name)
    if not is_reid(name):
        raise ValueError(
            f"data set {name!r} is no re-ID set; crops of a person search set are named "
            f"'{name}_crops'"
        )
    samples = DatasetCatalog.get(name)
    return samples, IDMap(MetadataCatalog.get(name).person_ids)
