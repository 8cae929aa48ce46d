"""Tracing of a person search network to a TorchScript module.

Detectron2's export package is not used: in Detectron2 0.5 it imports caffe2, which PyTorch no
longer has, and its adapter supports one traced method, while detection and the embedding of given
boxes are two.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Optional
from unittest import mock

import torch
import torchvision
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from torch import nn

from kd_search.modeling.backbones.layer_chain import LayerChain
from kd_search.modeling.id_table import IDTable


class ExportablePersonSearch(nn.Module):
    """Interface of an exported network: tensors in, tensors out, one image at a time."""

    def __init__(self, model: nn.Module):
        """
        Args:
            model: has ``inference(batch, do_postprocess=False)`` and ``embed(batch, boxes)`` as
                :class:`kd_search.modeling.PersonSearchRCNN`.
        """
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Detect people and embed them.

        Args:
            image: (3, H, W) network input, uint8 or float of 0 to 255, channels in the order of
                ``INPUT.FORMAT``; any H and W.

        Returns:
            boxes: (N, 4) XYXY in pixels of ``image``, highest score first; N may be 0.
            scores: (N,) in [0, 1].
            embeddings: (N, D) of length one.
        """
        model: Any = self.model
        people = model.inference(_batch(image), do_postprocess=False)[0]
        # As Detectron2's post-processing: boxes without an area in the image are dropped.
        keep = people.pred_boxes.nonempty()
        return (
            people.pred_boxes.tensor[keep],
            people.scores[keep],
            people.pred_embeddings[keep],
        )

    def embed(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Embed given boxes of people, such as queries.

        Args:
            image: as :meth:`forward`.
            boxes: (Q, 4) XYXY in pixels of ``image``; Q may be 0.

        Returns:
            (Q, D) embeddings of length one.
        """
        model: Any = self.model
        embeddings: torch.Tensor = model.embed(_batch(image), [boxes])
        return embeddings


def _batch(image: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    # A trace fixes the type of its sample: without the cast, that of uint8 would round floats.
    return [{"image": image.to(torch.float32)}]


def inference_model(model: nn.Module) -> Any:
    """Return the network to export: the student of a Distiller, otherwise the model itself.

    Raises:
        ValueError: it is not a person search network.
    """
    model = getattr(model, "module", model)  # DistributedDataParallel
    student = getattr(model, "student", model)
    if not (hasattr(student, "inference") and hasattr(student, "embed")):
        raise ValueError(
            f"{type(student).__name__} has no inference() and embed(): only person search networks "
            "such as PersonSearchRCNN can be exported"
        )
    return student


def exportable(model: nn.Module) -> ExportablePersonSearch:
    """Return a copy of the inference part of ``model``, in evaluation mode."""
    student = inference_model(model)
    # Without ID tables, which may be as large as the network and are used in training only.
    without = {id(part): None for part in student.modules() if isinstance(part, IDTable)}
    return ExportablePersonSearch(copy.deepcopy(student, without)).eval().requires_grad_(False)


def trace_person_search(
    model: nn.Module, sample_image: Optional[torch.Tensor] = None
) -> torch.jit.ScriptModule:
    """Trace a network for images of any size and any number of people.

    Args:
        model: a PersonSearchRCNN, or a Distiller with one as its student. It is not modified; a
            copy in evaluation mode is traced, on the model's device.
        sample_image: (3, H, W), any; ``None``: noise.

    Returns:
        A module with the two methods of :class:`ExportablePersonSearch`.
    """
    module = exportable(model)
    device = inference_model(model).device
    if sample_image is None:
        noise = torch.Generator().manual_seed(0)
        sample_image = torch.randint(0, 256, (3, 160, 128), generator=noise, dtype=torch.uint8)
    if sample_image.dim() != 3 or sample_image.shape[0] != 3:
        raise ValueError(f"the sample image must be (3, H, W), got {tuple(sample_image.shape)}")
    image = sample_image.to(device)
    height, width = image.shape[1:]
    boxes = image.new_tensor([[0, 0, 1, 1], [0.2, 0.1, 0.6, 0.9]], dtype=torch.float32)
    boxes = boxes * boxes.new_tensor([width, height, width, height])
    inputs = {"forward": (image,), "embed": (image, boxes)}
    with torch.no_grad(), quiet_torchscript(), _exact_tracing():
        for chain in [part for part in module.modules() if isinstance(part, LayerChain)]:
            chain.script_branches()
        # torch's check would trace a second time and compare only this image.
        return torch.jit.trace_module(module, inputs, check_trace=False)


@contextmanager
def _exact_tracing() -> Iterator[None]:
    """Prevent tracing from making constant what differs between images."""
    with ExitStack() as stack:
        # Python's len() of a traced tensor is a constant: the number of regions of the sample.
        stack.enter_context(mock.patch.object(fast_rcnn, "len", _traced_len, create=True))
        # When traced, torchvision always separates levels and classes by offsets of the boxes,
        # which rounds coordinates; otherwise it treats many boxes level by level. A scripted
        # function keeps that branch, and so the exported file keeps exactly the model's boxes.
        nms = torch.jit.script(torchvision.ops.batched_nms)

        def batched_nms(
            boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
        ) -> Any:
            return nms(boxes.float(), scores, idxs, iou_threshold)

        for module in (proposal_utils, fast_rcnn):
            stack.enter_context(mock.patch.object(module, "batched_nms", batched_nms))
        yield


def _traced_len(sized: Any) -> Any:
    return sized.__len__()


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Silence TorchScript's warnings about its deprecation and about constant sizes.

    :func:`~kd_search.export.check_parity` finds the sizes that must not be constant.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
        yield
