"""A trained person search network as one TorchScript module, by tracing.

Detectron2's own export package is not used: on stock Detectron2 0.5 its import asks for caffe2,
which PyTorch no longer has, and its adapter knows one traced method, while people and given boxes
need two. What it does for tracing is small and stands here.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Optional
from unittest import mock

import torch
import torchvision
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from torch import nn

from kd_search.modeling.id_table import IDTable


class ExportablePersonSearch(nn.Module):
    """Tensors in, tensors out, one image at a time: what the exported file holds."""

    def __init__(self, model: nn.Module):
        """
        Args:
            model: has ``inference(batch, do_postprocess=False)`` and ``embed(batch, boxes)`` as
                :class:`kd_search.modeling.PersonSearchRCNN`.
        """
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Find people.

        Args:
            image: (3, H, W) network input, uint8 or float of 0 to 255, channels in the order of
                ``INPUT.FORMAT``; any H and W.

        Returns:
            boxes: (N, 4) XYXY in pixels of ``image``, highest score first; N may be 0.
            scores: (N,) in [0, 1].
            embeddings: (N, D) of length one.
        """
        people = self.model.inference(_batch(image), do_postprocess=False)[0]
        # As Detectron2's post-processing: clipped to nothing is no detection.
        keep = people.pred_boxes.nonempty()
        return (
            people.pred_boxes.tensor[keep],
            people.scores[keep],
            people.pred_embeddings[keep],
        )

    def embed(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Embed given people, such as queries.

        Args:
            image: as :meth:`forward`.
            boxes: (Q, 4) XYXY in pixels of ``image``; Q may be 0.

        Returns:
            (Q, D) embeddings of length one.
        """
        return self.model.embed(_batch(image), [boxes])


def _batch(image: torch.Tensor) -> list[dict]:
    # A trace remembers the type it saw: without the cast, one of a uint8 image would round floats.
    return [{"image": image.to(torch.float32)}]


def inference_model(model: nn.Module) -> nn.Module:
    """The network that is exported: the student of a Distiller, otherwise the model itself.

    Raises:
        ValueError: if it cannot search people.
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
    """A copy of the inference part of ``model``, in evaluation mode and without ID tables."""
    student = inference_model(model)
    # ID tables are as large as a network and serve training alone: the copy leaves them out.
    without = {id(part): None for part in student.modules() if isinstance(part, IDTable)}
    return ExportablePersonSearch(copy.deepcopy(student, without)).eval().requires_grad_(False)


def trace_person_search(
    model: nn.Module, sample_image: Optional[torch.Tensor] = None
) -> torch.jit.ScriptModule:
    """Trace a network for images of any size and any number of people.

    Args:
        model: a PersonSearchRCNN, or a Distiller, whose student is taken. It is not changed, its
            training mode included; a copy in evaluation mode is traced, on the model's device.
        sample_image: (3, H, W); which one does not matter. ``None`` takes noise.

    Returns:
        module with the two methods of :class:`ExportablePersonSearch`.
    """
    module = exportable(model)
    device = module.model.device
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
        # Not checked by torch, which would trace a second time and compare this one image.
        return torch.jit.trace_module(module, inputs, check_trace=False)


@contextmanager
def _exact_tracing() -> Iterator[None]:
    """Keep tracing from baking in what differs from image to image."""
    with ExitStack() as stack:
        # Python's len() of a traced tensor is a constant: the number of regions of the sample.
        stack.enter_context(mock.patch.object(fast_rcnn, "len", _traced_len, create=True))
        # Under tracing, torchvision always separates levels and classes by shifting boxes apart,
        # which rounds coordinates; with many boxes it otherwise goes level by level. Scripted, its
        # choice stays a choice, and the exported file keeps exactly the boxes the model keeps.
        nms = torch.jit.script(torchvision.ops.batched_nms)

        def batched_nms(boxes, scores, idxs, iou_threshold: float):
            return nms(boxes.float(), scores, idxs, iou_threshold)

        for module in (proposal_utils, fast_rcnn):
            stack.enter_context(mock.patch.object(module, "batched_nms", batched_nms))
        yield


def _traced_len(sized) -> int:
    return sized.__len__()


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Silence what TorchScript says of every network: its deprecation, and sizes made constant.

    The latter is for the parity check to judge, which knows what must not be constant.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
        yield
