"""Registers the re-ID sets that kd_search knows by name. Importing it touches no file."""

import os
from typing import Callable

from detectron2.data import DatasetCatalog

from kd_search.data.reid.atrw import load_atrw
from kd_search.data.reid.duke_video import load_duke_video
from kd_search.data.reid.folders import datasets_root
from kd_search.data.reid.market1501 import load_market1501, load_market1501_split
from kd_search.data.reid.mars import load_mars
from kd_search.data.reid.register import register_reid_set
from kd_search.data.reid.samples import LoadedReID
from kd_search.data.reid.veri import load_veri

_MARKET_CROPS = "KD_SEARCH_MARKET_CROPS"
_GENERATED = "KD_SEARCH_TRACKLETS"
_DEFAULT_GENERATED = os.path.join("output", "tracklets")
_SEE = "(see docs/datasets.md)"


def _below_datasets(folder: str, load: Callable[..., LoadedReID], split: str, **options):
    hint = f"set DETECTRON2_DATASETS to the folder that holds {folder}/ {_SEE}"
    return lambda: load(datasets_root(folder), split, hint=hint, **options)


def _market_split(name: str, split: str, tracklets: bool):
    def load() -> LoadedReID:
        folder = os.path.expanduser(os.getenv(_MARKET_CROPS, ""))
        if not folder or not os.path.isdir(folder):
            raise FileNotFoundError(
                f"{name}: set {_MARKET_CROPS} to the folder of the crops, such as "
                f"bounding_box_train of Market-1501 {_SEE}"
            )
        return load_market1501_split(folder, split, tracklets=tracklets)

    return load


def _generated(name: str, split: str):
    def load() -> LoadedReID:
        folder = os.path.expanduser(os.getenv(_GENERATED, _DEFAULT_GENERATED))
        if not os.path.isfile(os.path.join(folder, "dataset.json")):
            raise FileNotFoundError(
                f"{name}: {folder} holds no generated tracklets; make them with "
                f"'python tools/generate_dataset.py --kind tracklets --output {folder}' or set "
                f"{_GENERATED}"
            )
        return load_market1501(folder, split, tracklets=True)

    return load


def register_builtin_reid() -> None:
    """Register every built-in re-ID set; names that exist are left as they are."""
    sets: dict[str, Callable[[], LoadedReID]] = {}
    for split in ("train", "test"):
        market = "market1501"
        sets[f"market1501_{split}"] = _below_datasets(market, load_market1501, split)
        sets[f"market1501_tracklets_{split}"] = _below_datasets(
            market, load_market1501, split, tracklets=True
        )
        for part, tracklets in (("split", False), ("split_tracklets", True)):
            name = f"market1501_{part}_{split}"
            sets[name] = _market_split(name, split, tracklets)
        sets[f"mars_{split}"] = _below_datasets("mars", load_mars, split)
        sets[f"duke_video_{split}"] = _below_datasets("duke_video", load_duke_video, split)
        sets[f"veri_{split}"] = _below_datasets("veri", load_veri, split)
        sets[f"veri_images_{split}"] = _below_datasets("veri", load_veri, split, tracklets=False)
        sets[f"atrw_{split}"] = _below_datasets("atrw", load_atrw, split)
        name = f"kd_tracklets_{split}"
        sets[name] = _generated(name, split)
    for name, load in sets.items():
        if name not in DatasetCatalog.list():
            register_reid_set(name, load)
