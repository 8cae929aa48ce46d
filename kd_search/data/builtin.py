"""Registration of the built-in data sets. Importing this module reads no file."""

import os
from functools import partial
from typing import Any, Callable, Optional

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data.catalog import unregister
from kd_search.data.detection.ilsvrc import register_ilsvrc_det
from kd_search.data.detection.kitti import register_kitti
from kd_search.data.detection.register import load_coco, register_detection_set
from kd_search.data.generated import register_generated, register_objects, register_tracklets
from kd_search.data.io.files import datasets_folder, datasets_hint, require_paths
from kd_search.data.person_search.cuhk_sysu import CUHKSYSUFiles
from kd_search.data.person_search.mot import MOTFiles
from kd_search.data.person_search.prw_mat import PRWFiles
from kd_search.data.person_search.register import SplitFiles, register_split
from kd_search.data.person_search.split import SplitSource
from kd_search.data.records import Record
from kd_search.data.reid.atrw import load_atrw
from kd_search.data.reid.duke_video import load_duke_video
from kd_search.data.reid.market1501 import load_market1501, load_market1501_split
from kd_search.data.reid.mars import load_mars
from kd_search.data.reid.register import register_reid_set
from kd_search.data.reid.samples import LoadedReID
from kd_search.data.reid.veri import load_veri

_MARKET_CROPS = "KD_SEARCH_MARKET_CROPS"
_MOT = "KD_SEARCH_MOT"
_PRW_C6 = "KD_SEARCH_PRW_C6"


def register_builtin() -> None:
    """Register every built-in set; runs once, when kd_search.data is imported.

    Sets that are registered already are kept. PASCAL VOC and COCO are registered by Detectron2.
    """
    registrations: dict[str, Callable[[], None]] = {
        "kd_generated_train": register_generated,
        "kd_objects_train": register_objects,
        "kd_tracklets_train": register_tracklets,
        "kd_coco128": register_coco128,
    }
    for name, locate in _person_search_sets().items():
        registrations[name] = partial(register_split, name, locate)
    for split in ("train", "val"):
        for prefix, register in (("kitti", register_kitti), ("ilsvrc_det", register_ilsvrc_det)):
            registrations[f"{prefix}_{split}"] = partial(register, f"{prefix}_{split}", split)
    for name, load in _reid_sets().items():
        registrations[name] = partial(register_reid_set, name, load)
    known = set(DatasetCatalog.list())
    for name, register_set in registrations.items():
        if name not in known:
            register_set()


def _variable_folder(variable: str) -> str:
    """Folder in an environment variable; where it is unset, a path that does not exist."""
    return os.path.expanduser(os.getenv(variable) or f"${variable}")


# Person search ----------------------------------------------------------------------------------


def release_files(name: str, release: str, root: str, split: str) -> SplitSource:
    """Files of a split of PRW or CUHK-SYSU in a folder.

    Args:
        name: of the set, for messages.
        release: "prw" or "cuhk_sysu".
        root: folder of the release.
        split: "train" or "test".

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: ``release`` or ``split`` is another word.
    """
    if release not in _RELEASES or split not in ("train", "test"):
        raise ValueError(
            f"[{name}, {release}, {root}, {split}] must be [name, {' or '.join(_RELEASES)}, "
            "folder, train or test]"
        )
    return _RELEASES[release](name, split, root=root)


def _person_search_sets() -> dict[str, Callable[[], SplitSource]]:
    sets: dict[str, Callable[[], SplitSource]] = {
        "prw_mini_test": partial(_prw, "prw_mini_test", "test", "prwmini_query_info.txt"),
    }
    for split in ("train", "test"):
        for name, locate in (
            ("prw", _prw),
            ("prw_c6", _prw_c6),
            ("cuhk_sysu", _cuhk_sysu),
            ("mot", _mot),
        ):
            sets.setdefault(f"{name}_{split}", partial(locate, f"{name}_{split}", split))
    return sets


def _prw(
    name: str, split: str, queries: str = "query_info.txt", *, root: Optional[str] = None
) -> SplitSource:
    """Files of the release where they exist, or else COCO-JSON."""
    hint = "is this the folder of PRW?" if root else datasets_hint("prw")
    root = root or datasets_folder("prw")
    query_info = os.path.join(root, queries) if split == "test" else None
    if any(os.path.isfile(os.path.join(root, f"frame_{part}.mat")) for part in ("train", "test")):
        return PRWFiles(root, split, query_info)
    # The two JSON files have different numberings: train_pid.json counts 0..482, test_pid.json
    # has the numbers of the release.
    files = SplitFiles(
        json_file=os.path.join(root, "annotations", f"{split}_pid.json"),
        image_root=os.path.join(root, "frames"),
        query_info=query_info,
        id_space="prw relabelled" if split == "train" else "prw",
    )
    return _existing(name, files, hint)


def _prw_c6(name: str, split: str) -> SplitFiles:
    hint = f"set {_PRW_C6} to the folder that holds split/ and frames/"
    root = _variable_folder(_PRW_C6)
    files = SplitFiles(
        json_file=os.path.join(root, "split", f"{split}.json"),
        image_root=os.path.join(root, "frames"),
        query_info=os.path.join(root, "split", "query_info.txt") if split == "test" else None,
    )
    return _existing(name, files, hint)


def _cuhk_sysu(name: str, split: str, *, root: Optional[str] = None) -> SplitSource:
    """Files of the release where they exist, or else COCO-JSON."""
    hint = "is this the folder of CUHK-SYSU?" if root else datasets_hint("cuhk_sysu")
    root = root or datasets_folder("cuhk_sysu")
    if os.path.isfile(os.path.join(root, "annotation", "Images.mat")):
        return CUHKSYSUFiles(root, split)
    files = SplitFiles(
        json_file=os.path.join(root, "annotations", f"{split}.json"),
        image_root=os.path.join(root, "Image", "SSM"),
        query_info=os.path.join(root, "query_info.txt") if split == "test" else None,
    )
    return _existing(name, files, hint)


def _mot(name: str, split: str) -> SplitSource:
    root = os.path.join(_variable_folder(_MOT), split)
    require_paths(name, [root], f"set {_MOT} to the folder that holds {split}/ with its sequences")
    return MOTFiles(root, queries=split == "test")


def _existing(name: str, files: SplitFiles, hint: str) -> SplitFiles:
    paths = (files.json_file, files.image_root, files.query_info)
    require_paths(name, [path for path in paths if path is not None], hint)
    return files


_RELEASES: dict[str, Callable[..., SplitSource]] = {"prw": _prw, "cuhk_sysu": _cuhk_sysu}


# Detection --------------------------------------------------------------------------------------


def register_coco128(root: Optional[str] = None, name: str = "kd_coco128") -> None:
    """Register the first 128 images of COCO 2017's training set, for trials of a few minutes.

    Args:
        root: folder with ``annotations/instances_train2017.json`` and ``train2017/``. ``None``
            takes ``$DETECTRON2_DATASETS/coco128`` on first use.
        name: of the set; an earlier one is replaced.
    """
    unregister(name)

    def load(strict: bool) -> list[Record]:
        folder = root or datasets_folder("coco128")
        json_file = os.path.join(folder, "annotations", "instances_train2017.json")
        images = os.path.join(folder, "train2017")
        require_paths(name, (json_file, images), datasets_hint("coco128"))
        try:
            return load_coco(name, json_file, images)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{json_file}: broken ({type(error).__name__}: {error})") from None

    register_detection_set(name, load, list(MetadataCatalog.get("coco_2017_train").thing_classes))


# Re-ID ------------------------------------------------------------------------------------------


def _reid_sets() -> dict[str, Callable[[], LoadedReID]]:
    sets: dict[str, Callable[[], LoadedReID]] = {}
    for split in ("train", "test"):
        for prefix, folder, load, options in (
            ("market1501", "market1501", load_market1501, {}),
            ("market1501_tracklets", "market1501", load_market1501, {"tracklets": True}),
            ("mars", "mars", load_mars, {}),
            ("duke_video", "duke_video", load_duke_video, {}),
            ("veri", "veri", load_veri, {}),
            ("veri_images", "veri", load_veri, {"tracklets": False}),
            ("atrw", "atrw", load_atrw, {}),
        ):
            sets[f"{prefix}_{split}"] = partial(_reid_set, folder, load, split, options)
        for prefix, tracklets in (
            ("market1501_split", False),
            ("market1501_split_tracklets", True),
        ):
            name = f"{prefix}_{split}"
            sets[name] = partial(_market_split, name, split, tracklets)
    return sets


def _reid_set(
    folder: str, load: Callable[..., LoadedReID], split: str, options: dict[str, Any]
) -> LoadedReID:
    hint = f"{datasets_hint(folder)} (see docs/datasets.md)"
    return load(datasets_folder(folder), split, hint=hint, **options)


def _market_split(name: str, split: str, tracklets: bool) -> LoadedReID:
    folder = _variable_folder(_MARKET_CROPS)
    hint = f"set {_MARKET_CROPS} to a folder of crops, such as bounding_box_train of Market-1501"
    require_paths(name, [folder], hint)
    return load_market1501_split(folder, split, tracklets=tracklets)
