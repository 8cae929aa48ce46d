"""A frozen re-ID network that embeds crops of the original images (DKD, AAAI 2021)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from kd_search.distillation.companions import COMPANION_REGISTRY, Companion
from kd_search.distillation.methods.dkd.crop_cache import CropCache, cached_features
from kd_search.distillation.methods.dkd.crops import CropSampler, is_mirrored
from kd_search.distillation.protocols import Batch, CropTeacher, check_protocol
from kd_search.distillation.teacher import load_teacher, read_teacher_config
from kd_search.modeling import build_distillable
from kd_search.modeling.crops import cut_crops
from kd_search.outputs import CROP_PARTS, CropOutputs, Crops, ModelOutputs, ModelSpec
from kd_search.utils.files import file_sha256

_KEY = "DISTILLATION.REID_TEACHER"


@COMPANION_REGISTRY.register()
class ReIDTeacher(Companion):
    """A re-ID network that is not trained, and the sampler of its crops.

    It adds ``crops`` to the outputs of student and teacher: the student pools the boxes from its
    feature maps, the teacher cuts them from the original images.
    """

    provides = CROP_PARTS
    needs_original_images = True

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        input_size: tuple[int, int],
        sampler: Optional[CropSampler] = None,
        flips_channels: bool = False,
        mirror: bool = True,
        cache: Optional[CropCache] = None,
    ):
        """
        Args:
            model: a :class:`~kd_search.distillation.protocols.CropTeacher`.
            input_size: (H, W) of its crops.
            sampler: of the crops; by default the annotated boxes.
            flips_channels: its order of channels is not the student's.
            mirror: mirror its crops if the student's image is mirrored.
            cache: features of the annotated people; others are computed.

        Raises:
            ValueError: the network lacks a method.
        """
        super().__init__()
        check_protocol(model, CropTeacher, "a re-ID teacher", f"{_KEY}.CONFIG_FILE")
        # In a list, so that it is no submodule: it stays out of checkpoints and optimizer.
        self._frozen: list[Any] = [model.eval().requires_grad_(False)]
        self.input_size = input_size
        self.sampler = sampler or CropSampler(
            shifts=False, input_size=input_size, padding=0.0, limit=0.0
        )
        self.flips_channels = flips_channels
        self.mirror = mirror
        self.cache = cache

    @classmethod
    def from_config(
        cls, cfg: CfgNode, student: ModelSpec, teacher: Optional[ModelSpec] = None
    ) -> dict[str, Any]:
        node = cfg.DISTILLATION.REID_TEACHER
        if not node.CONFIG_FILE:
            raise ValueError(
                f"{_KEY}.CONFIG_FILE is empty, but the terms require a re-ID teacher: train one "
                "with kd-search train and set the key to its config"
            )
        teacher_cfg = read_teacher_config(cfg, node, _KEY)
        if teacher_cfg.MODEL.REID_NETWORK.NUM_IDS == 0:
            teacher_cfg.MODEL.REID_NETWORK.NUM_IDS = cfg.MODEL.OIM.NUM_IDS
        model = build_distillable(teacher_cfg)
        check_protocol(model, CropTeacher, "a re-ID teacher", f"{_KEY}.CONFIG_FILE")
        weights = load_teacher(model, cfg, node, teacher_cfg, _KEY)
        height, width = teacher_cfg.REID_DATA.SIZE
        size, sia = (height, width), cfg.DISTILLATION.SIA
        arguments: dict[str, Any] = {
            "model": model,
            "input_size": size,
            "sampler": CropSampler(
                shifts=sia.FEATURE_LEVEL, input_size=size, padding=sia.PADDING, limit=sia.LIMIT
            ),
            "flips_channels": model.spec().image_format != student.image_format,  # type: ignore[operator]  # checked above
            "mirror": node.MIRROR_CROPS,
        }
        if node.CACHE_DIR:
            built = cls(**arguments)
            sha256 = file_sha256(weights)
            arguments["cache"] = cached_features(cfg, built, teacher_cfg, sha256)
        return arguments

    @property
    def model(self) -> Any:
        """The frozen network."""
        return self._frozen[0]

    def frozen_networks(self) -> Sequence[nn.Module]:
        return self._frozen

    def extend_spec(self, teacher: Optional[ModelSpec]) -> ModelSpec:
        own: ModelSpec = self.model.spec()
        spec = teacher or ModelSpec(features={}, num_classes=0, parts=frozenset())
        return replace(spec, crops=own.crops, parts=spec.parts | CROP_PARTS)

    def before_student(self, batched_inputs: Batch) -> CropOutputs:
        if batched_inputs and "original_image" not in batched_inputs[0]:
            raise ValueError(
                "ReIDTeacher: the batch has no original_image to cut crops from: set "
                "INPUT.WITH_ORIGINAL_IMAGE to True"
            )
        # So that the student samples the same regions as without a teacher.
        with torch.random.fork_rng(devices=[]):
            crops = self.sampler(batched_inputs)
        return self.embed_crops(batched_inputs, crops.to(self.model.device))

    def after_student(
        self,
        network: Any,
        student: ModelOutputs,
        teacher: Optional[ModelOutputs],
        early: CropOutputs,
    ) -> tuple[ModelOutputs, ModelOutputs]:
        student = replace(student, crops=network.embed_crops(student, early.crops))
        return student, replace(teacher or ModelOutputs(), crops=early)

    @torch.no_grad()
    def embed_crops(self, batched_inputs: Batch, crops: Crops) -> CropOutputs:
        """Embeddings and identity logits of crops of a batch, without gradient.

        Args:
            batched_inputs: with ``original_image``, see ``INPUT.WITH_ORIGINAL_IMAGE``.
            crops: of the batch.
        """
        cut, cached, where = [torch.zeros((0, 3, *self.input_size))], [], []
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
        computed = self.features(torch.cat(cut))
        known = torch.cat(where).to(computed.device)
        features = computed.new_zeros((len(known), computed.shape[1]))
        features[~known] = computed
        if cached:
            features[known] = torch.cat(cached).to(features)
        return CropOutputs(crops, *self.model.classify(features))

    @torch.no_grad()
    def features(self, crops: torch.Tensor) -> torch.Tensor:
        """(P, D) features of (P, 3, H, W) crops with the student's order of channels."""
        if self.flips_channels:
            crops = crops.flip(1)
        features: torch.Tensor = self.model.crop_features(crops.to(self.model.device))
        return features
