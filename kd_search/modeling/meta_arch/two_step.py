"""Person search in two steps: detection, then re-identification of crops."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F  # noqa: N812

from kd_search.checkpoint import load_trained
from kd_search.config.files import read_network_config
from kd_search.modeling.crops import cut_crops
from kd_search.modeling.meta_arch.reid_network import ReIDNetwork

_KEY = "MODEL.TWO_STEP.REID"


@META_ARCH_REGISTRY.register()
class TwoStepSearch(GeneralizedRCNN):
    """A detector whose people are embedded by a re-ID network, from crops of the original image.

    The alternative to end-to-end person search, and the baseline of DKD (Zhang et al., AAAI 2021):
    its re-ID teacher used at test. The network of the config, with its weights and training, is
    the detector; the re-ID network is trained before, and stays out of checkpoints.

    Inputs are those of :class:`~kd_search.modeling.PersonSearchRCNN` at test, with
    ``original_image`` and ``to_original`` (``INPUT.WITH_ORIGINAL_IMAGE``).
    """

    @configurable
    def __init__(self, *, reid: nn.Module, reid_size: tuple[int, int], **detector: Any):
        """
        Args:
            reid: a :class:`ReIDNetwork`.
            reid_size: (H, W) of its crops.
            detector: arguments of ``GeneralizedRCNN``.
        """
        super().__init__(**detector)
        # In a list, so that it is no submodule: it stays out of checkpoints and optimizer.
        self._reid: list[Any] = [reid.eval().requires_grad_(False)]
        self.reid_size = reid_size
        self.flips_channels = self._reid[0].input_format != (self.input_format or "BGR")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.TWO_STEP.REID
        if not node.CONFIG_FILE:
            raise ValueError(f"{_KEY}.CONFIG_FILE is empty: set it to that of a re-ID network")
        reid_cfg = read_network_config(node, _KEY)
        reid_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
        # Its classifier of the training identities is not used.
        reid_cfg.MODEL.REID_NETWORK.NUM_IDS = reid_cfg.MODEL.REID_NETWORK.NUM_IDS or 1
        name = reid_cfg.MODEL.META_ARCHITECTURE
        network = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
        if not (isinstance(network, type) and issubclass(network, ReIDNetwork)):
            raise ValueError(f"{_KEY}.CONFIG_FILE: {name} is no ReIDNetwork")
        reid = build_model(reid_cfg)
        weights = node.WEIGHTS or reid_cfg.MODEL.WEIGHTS
        if not weights:
            raise ValueError(f"{_KEY}.WEIGHTS is empty: set it to the weights of that network")
        load_trained(reid, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE, for_inference=True)
        height, width = reid_cfg.REID_DATA.SIZE
        return {**super().from_config(cfg), "reid": reid, "reid_size": (height, width)}

    @property
    def reid(self) -> Any:
        """The re-ID network."""
        return self._reid[0]

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: Optional[list[Instances]] = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Detect people and embed their crops; see :meth:`.PersonSearchRCNN.inference`.

        Without post-processing, the detections only.
        """
        if not do_postprocess:
            return super().inference(batched_inputs, detected_instances, False)
        for x in batched_inputs:
            if "original_image" not in x:
                raise ValueError(
                    "TwoStepSearch: the batch has no original_image to cut crops from: set "
                    "INPUT.WITH_ORIGINAL_IMAGE to True"
                )
        if detected_instances is None and "gallery_boxes" in batched_inputs[0]:
            outputs = [{"instances": _given(x, "gallery_boxes")} for x in batched_inputs]
        else:
            outputs = super().inference(batched_inputs, detected_instances, True)
        for x, output in zip(batched_inputs, outputs):
            if "annotated_boxes" in x:
                output["gt_instances"] = _given(x, "annotated_boxes")
            for people in (output["instances"], output.get("gt_instances")):
                if people is not None:
                    people.pred_embeddings = self.embed(x, people.pred_boxes.tensor)
            if "query_boxes" in x:
                boxes = _to_original(x["query_boxes"], x["to_original"])
                output["query_embeddings"] = self.embed(x, boxes)
        return outputs

    def embed(self, x: dict[str, Any], boxes: torch.Tensor) -> torch.Tensor:
        """(N, D) L2-normalised embeddings of boxes (N, 4), XYXY in pixels of the original image."""
        if not len(boxes):
            return torch.zeros((0, self.reid.spec().identities.embedding_dim), device=self.device)
        image = x["original_image"].to(self.device)
        crops = cut_crops(image.flip(0) if self.flips_channels else image, boxes, self.reid_size)
        return F.normalize(self.reid.embed(crops[:, None]))


def _given(x: dict[str, Any], key: str) -> Instances:
    boxes = _to_original(x[key], x["to_original"])
    return Instances(
        tuple(x["original_image"].shape[1:]),
        pred_boxes=Boxes(boxes),
        scores=boxes.new_ones(len(boxes)),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
    )


def _to_original(boxes: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Boxes of the network's input in pixels of the original image; images are scaled at test."""
    scale = torch.stack([matrix[0, 0], matrix[1, 1]]).repeat(2)
    shift = matrix[:, 2].repeat(2)
    return boxes * scale.to(boxes) + shift.to(boxes)
