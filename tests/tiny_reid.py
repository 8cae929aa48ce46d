"""A re-ID network small enough for unit tests."""

import kd_search.modeling  # noqa: F401  registers the network
from kd_search.config import get_cfg


def reid_cfg(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "ReIDNetwork", "MODEL.DEVICE", "cpu"),
            *("MODEL.BACKBONE.NAME", "build_width_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", ["res5"]),
            *("MODEL.RESNETS.RES5_STRIDE", 1, "MODEL.REID_NETWORK.NUM_IDS", 5),
            *overrides,
        ]
    )
    return cfg
