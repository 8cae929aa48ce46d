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
    #: Trained from ImageNet weights, with their batch statistics, by the published recipe. Others
    #: start from random numbers, all layers are trained, and their batch normalisation learns.
    pretrained: bool = False


NETWORKS = {
    "r18_fpn": Network("prw_c6/teacher_r18_fpn.yaml", "ResNet-18, 128-channel pyramid, 14 M"),
    "r18w50_fpn": Network(
        "prw_c6/student_r18w50_fpn.yaml", "half-width ResNet-18, 64-channel pyramid, 3.5 M"
    ),
    "r50_fpn": Network("prw/r50_fpn.yaml", "ResNet-50, 256-channel pyramid", pretrained=True),
    "r18_fpn128": Network("prw/r18_fpn128.yaml", "ResNet-18, 128-channel pyramid", pretrained=True),
}


def find_network(name: str, option: str) -> Network:
    """The network of a name.

    Raises:
        ValueError: there is none; the message lists all.
    """
    if name not in NETWORKS:
        raise ValueError(f"{option} {name}: the networks are {', '.join(NETWORKS)}")
    return NETWORKS[name]
