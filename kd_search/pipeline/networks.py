"""Networks that ``kd-search init`` offers by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A shipped config, and how it is trained."""

    #: Name of a shipped config, which becomes ``_BASE_``.
    config: str
    #: What it is, for messages.
    what: str
    #: Starts from ImageNet weights, which the user has to name. Others can start from a file, too.
    pretrained: bool = False
    #: Trained by the published recipe, with the batch statistics of its weights. Otherwise all
    #: layers are trained, and the batch normalisation learns.
    recipe: bool = False
    #: Key of the file that it starts from.
    weights: str = "MODEL.WEIGHTS"


_BACKBONE_WEIGHTS = "MODEL.TORCHVISION.WEIGHTS"
NETWORKS = {
    "r18_fpn": Network("prw_c6/teacher_r18_fpn.yaml", "ResNet-18, 128-channel pyramid, 14 M"),
    "r18w50_fpn": Network(
        "prw_c6/student_r18w50_fpn.yaml", "half-width ResNet-18, 64-channel pyramid, 3.5 M"
    ),
    "mobilenetv2_fpn256": Network(
        "prw_c6/teacher_mobilenetv2_fpn.yaml",
        "MobileNetV2, 256-channel pyramid, 13 M",
        pretrained=True,
        weights=_BACKBONE_WEIGHTS,
    ),
    "mobilenetv2_fpn64": Network(
        "prw_c6/student_mobilenetv2_fpn.yaml",
        "MobileNetV2, 64-channel pyramid, 2.6 M",
        pretrained=True,
        weights=_BACKBONE_WEIGHTS,
    ),
    "r50_fpn": Network(
        "prw/r50_fpn.yaml", "ResNet-50, 256-channel pyramid", pretrained=True, recipe=True
    ),
    "r18_fpn128": Network(
        "prw/r18_fpn128.yaml", "ResNet-18, 128-channel pyramid", pretrained=True, recipe=True
    ),
}


def find_network(name: str, option: str) -> Network:
    """The network of a name.

    Raises:
        ValueError: there is none; the message lists all.
    """
    if name not in NETWORKS:
        raise ValueError(f"{option} {name}: the networks are {', '.join(NETWORKS)}")
    return NETWORKS[name]
