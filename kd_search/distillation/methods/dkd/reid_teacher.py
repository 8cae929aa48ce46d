"""A frozen re-ID network that looks at people cut from the original images."""

import dataclasses
from typing import Optional

import torch
from torch import nn

from kd_search.distillation.methods.dkd.crop_cache import (
    CropCache,
    cached_features,
)
from kd_search.distillation.methods.dkd.crops import (
    cut_crops,
    is_mirrored,
)
from kd_search.distillation.methods.id_table.file import file_sha256
from kd_search.distillation.teacher import build_network, load_teacher, read_teacher_config
from kd_search.outputs import (
    Crops,
    Knowledge,
)

#: Fields of :class:`Knowledge` that a re-ID teacher fills.
CROP_FIELDS = frozenset({"crop_embeddings", "crop_identity_logits"})


class ReIDTeacher:
    """Owns a re-ID network that never trains; as :class:`Teacher`, no module on purpose."""

    def __init__(
        self,
        model: nn.Module,
        *,
        input_size: tuple[int, int],
        flips_channels: bool = False,
        mirror: bool = True,
        cache: Optional[CropCache] = None,
    ):
        """
        Args:
            model: with ``crop_features(crops)``, ``judge_features(features)``, which returns
                embeddings and identity logits, and ``layout()``.
            input_size: (H, W) of its crops.
            flips_channels: it was trained on the other order of channels than the student.
            mirror: show it mirrored crops where the student's image is mirrored.
            cache: features of the annotated people; others are computed.
        """
        self.model = model.eval().requires_grad_(False)
        self.input_size = input_size
        self.flips_channels = flips_channels
        self.mirror = mirror
        self.cache = cache

    @torch.no_grad()
    def observe(self, batched_inputs: list[dict], crops: Crops) -> Knowledge:
        """The teacher's knowledge of the people of a batch, without gradient.

        Args:
            batched_inputs: of a mapper ``with_original``.
            crops: of the batch.
        """
        cut, cached, where = [], [], []
        for x, boxes, annotations in zip(batched_inputs, crops.original_boxes, crops.annotations):
            mirror = self.mirror and is_mirrored(x)
            known = torch.zeros(len(boxes), dtype=torch.bool)
            if self.cache is not None:
                known = annotations >= 0
                cached.append(self.cache.read(x["file_name"], annotations[known], mirror))
            where.append(known)
            if not known.all():
                image = x["original_image"]
                cut.append(cut_crops(image, boxes[~known], self.input_size, mirror=mirror))
        computed = self.features(torch.cat(cut) if cut else torch.zeros((0, 3, *self.input_size)))
        known = torch.cat(where).to(computed.device)
        features = computed.new_zeros((len(known), computed.shape[1]))
        features[~known] = computed
        if cached:
            features[known] = torch.cat(cached).to(features)
        embeddings, logits = self.model.judge_features(features)
        return Knowledge(crops=crops, crop_embeddings=embeddings, crop_identity_logits=logits)

    @torch.no_grad()
    def features(self, crops: torch.Tensor) -> torch.Tensor:
        """(P, D) features of (P, 3, H, W) crops with the student's order of channels."""
        if self.flips_channels:
            crops = crops.flip(1)
        return self.model.crop_features(crops.to(self.model.device))


def build_reid_teacher(cfg, student_format: str) -> ReIDTeacher:
    """Build the re-ID network of ``DISTILLATION.REID_TEACHER`` and load its weights.

    Args:
        cfg: the student's config.
        student_format: order of the channels of the student's images.

    Raises:
        ValueError: no config file or weights are named, or the network does not embed crops.
    """
    node = cfg.DISTILLATION.REID_TEACHER
    if not node.CONFIG_FILE:
        raise ValueError(
            "DISTILLATION.REID_TEACHER.CONFIG_FILE is empty, but the terms ask a re-ID teacher: "
            "train one with tools/train_net.py and name its config"
        )
    teacher_cfg = read_teacher_config(cfg, node)
    if teacher_cfg.MODEL.REID_NETWORK.NUM_IDS == 0:
        teacher_cfg.MODEL.REID_NETWORK.NUM_IDS = cfg.MODEL.OIM.NUM_IDS
    model = build_network(teacher_cfg, node.CONFIG_FILE, "judge_features")
    weights = load_teacher(model, cfg, node, teacher_cfg, "DISTILLATION.REID_TEACHER")
    teacher = ReIDTeacher(
        model,
        input_size=tuple(teacher_cfg.REID_DATA.SIZE),
        flips_channels=model.layout().image_format != student_format,
        mirror=node.MIRROR_CROPS,
    )
    if node.CACHE_DIR:
        teacher.cache = cached_features(cfg, teacher, teacher_cfg, file_sha256(weights))
    return teacher


def merge(detector: Optional[Knowledge], reid: Optional[Knowledge]) -> Optional[Knowledge]:
    """What both teachers know; either may be absent."""
    if detector is None or reid is None:
        return reid if detector is None else detector
    return dataclasses.replace(
        detector,
        crops=reid.crops,
        crop_embeddings=reid.crop_embeddings,
        crop_identity_logits=reid.crop_identity_logits,
    )
