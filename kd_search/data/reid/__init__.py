"""Re-identification: crops and tracklets, and batches of P identities with K samples each."""

from kd_search.data.reid.atrw import load_atrw, register_atrw
from kd_search.data.reid.builtin import register_builtin_reid
from kd_search.data.reid.crops import register_named_crops, reid_crops_of
from kd_search.data.reid.duke_video import load_duke_video, register_duke_video
from kd_search.data.reid.mapper import CropMapper
from kd_search.data.reid.market1501 import (
    load_market1501,
    load_market1501_split,
    register_market1501,
    register_market1501_split,
)
from kd_search.data.reid.mars import load_mars, register_mars
from kd_search.data.reid.register import (
    get_reid_id_map,
    get_reid_samples,
    is_reid,
    register_reid_set,
)
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets
from kd_search.data.reid.test_loader import build_reid_test_loader
from kd_search.data.reid.train_loader import ReIDTrainLoader, build_reid_train_loader
from kd_search.data.reid.veri import load_veri, register_veri

register_builtin_reid()
