"""Re-identification: crops and tracklets, and batches of P identities and K samples each."""

from kd_search.data.catalog import is_reid
from kd_search.data.reid.atrw import load_atrw
from kd_search.data.reid.crops import register_named_crops, reid_crops_of
from kd_search.data.reid.duke_video import load_duke_video
from kd_search.data.reid.held_out import register_named_parts
from kd_search.data.reid.mapper import CropMapper
from kd_search.data.reid.market1501 import (
    load_market1501,
    load_market1501_split,
    register_market1501,
    register_market1501_split,
)
from kd_search.data.reid.mars import load_mars
from kd_search.data.reid.register import get_reid_id_map, get_reid_samples, register_reid_set
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets
from kd_search.data.reid.test_loader import build_reid_test_loader
from kd_search.data.reid.train_loader import ReIDTrainLoader, build_reid_train_loader
from kd_search.data.reid.veri import load_veri
