"""Steps with the external re-ID teacher of DKD (Zhang et al., AAAI 2021).

Student, teacher and terms are those of ``projects/DKD/configs/generated``: a half-width ResNet-18
with an identity classifier, a ResNet-18 on crops of 128x64, all three terms. Every second image of
the batch is mirrored; the original of an image is as large as the image.
"""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from _distill_networks import REPO, Step, build, config, make_batch, set_statistics
from _distill_rows import overhead_row, same_detection_losses
from torch import nn

from kd_search.distillation import Distiller, build_terms
from kd_search.distillation.methods.dkd import CropSampler, ReIDTeacher
from kd_search.distillation.methods.dkd.crop_cache import CropCache
from kd_search.distillation.methods.dkd.crops import is_mirrored
from kd_search.modeling.crops import cut_crops
from kd_search.outputs import Crops

CONFIGS = REPO / "projects" / "DKD" / "configs" / "generated"


def reid_rows(harness) -> list[dict]:
    return [running_teacher(harness), cached_teacher(harness)]


def running_teacher(harness) -> dict:
    """Compare all terms with shifted boxes (FSA): two crops for every person of the batch.

    The reference includes cutting the same crops and the teacher's forward pass on them.
    """
    batch = batch_with_originals()
    plain, distiller = student_and_distiller(batch, shifts=True)
    teacher = distiller.companions["ReIDTeacher"]
    ours, student_step = Step(distiller, batch), Step(plain, batch)
    crops = sampled_crops(distiller, batch)
    cut = cut_all(teacher, batch, crops)
    equal = same_detection_losses(ours, student_step) and same_teacher(teacher, batch, crops, cut)

    def reference():
        student_step()
        teacher.embed_crops(batch, crops)

    timing = harness.compare(ours, reference)
    case = f"DKD terms and shifted boxes over plain student + re-ID teacher on the {len(cut)} crops"
    return overhead_row(harness, case, timing, equal)


def cached_teacher(harness) -> dict:
    """Compare all terms on annotated boxes, with the teacher's features read from a cache."""
    batch = batch_with_originals()
    plain, distiller = student_and_distiller(batch, shifts=False)
    teacher = distiller.companions["ReIDTeacher"]
    crops = sampled_crops(distiller, batch)
    cut = cut_all(teacher, batch, crops)
    with tempfile.TemporaryDirectory() as folder:
        teacher.cache = cache_of(teacher, batch, Path(folder) / "features.npy")
        ours, reference = Step(distiller, batch), Step(plain, batch)
        equal = same_detection_losses(ours, reference) and same_teacher(teacher, batch, crops, cut)
        timing = harness.compare(ours, reference)
    case = f"DKD terms, teacher's features of the {len(cut)} people cached, over plain student"
    return overhead_row(harness, case, timing, equal)


def student_and_distiller(batch: list[dict], *, shifts: bool) -> tuple[nn.Module, Distiller]:
    cfg = config("student_r18w50_fpn", CONFIGS)
    plain = build(cfg, cfg.DISTILLATION.STUDENT_META_ARCH)
    teacher = build_reid_teacher(batch)
    node = cfg.DISTILLATION.SIA
    teacher.sampler = CropSampler(
        shifts=shifts, input_size=teacher.input_size, padding=node.PADDING, limit=node.LIMIT
    )
    distiller = Distiller(
        student=copy.deepcopy(plain),
        terms=build_terms(cfg),
        companions={"ReIDTeacher": teacher},
    )
    return plain, distiller.train()


def build_reid_teacher(batch: list[dict]) -> ReIDTeacher:
    """Build a teacher with random weights."""
    cfg = config("reid_teacher_r18", CONFIGS)
    model = build(cfg, "ReIDNetwork")
    size = tuple(cfg.REID_DATA.SIZE)
    crops = torch.cat([cut_crops(x["original_image"], boxes_of(x), size) for x in batch])
    set_statistics(model, lambda: model.classify(model.crop_features(crops)))
    return ReIDTeacher(model, input_size=size)


def batch_with_originals() -> list[dict]:
    """The batch of the other steps, with ``original_image`` and ``to_original``."""
    batch = make_batch()
    for number, x in enumerate(batch):
        people, mirrored = x["instances"], number % 2 == 1
        width = people.image_size[1]
        original = people.gt_boxes.tensor.clone()
        if mirrored:
            original[:, [0, 2]] = width - original[:, [2, 0]]
        people.gt_original_boxes = original
        people.gt_annotations = torch.arange(len(people))
        x["original_image"] = x["image"].flip(2) if mirrored else x["image"].clone()
        to_left = [-1.0, 0.0, float(width)] if mirrored else [1.0, 0.0, 0.0]
        x["to_original"] = torch.tensor([to_left, [0.0, 1.0, 0.0]])
        x["file_name"] = f"scene{number}.jpg"
    return batch


def boxes_of(sample: dict) -> torch.Tensor:
    return sample["instances"].gt_original_boxes


def sampled_crops(distiller: Distiller, batch: list[dict]) -> Crops:
    torch.manual_seed(0)
    return distiller.companions["ReIDTeacher"].sampler(batch)


def cut_all(teacher: ReIDTeacher, batch: list[dict], crops: Crops) -> torch.Tensor:
    """Cut the teacher's inputs (P, 3, H, W)."""
    return torch.cat(
        [
            cut_crops(x["original_image"], boxes, teacher.input_size, mirror=is_mirrored(x))
            for x, boxes in zip(batch, crops.original_boxes)
        ]
    )


@torch.no_grad()
def embed_alone(teacher: ReIDTeacher, cut: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute embeddings and logits of crops that are cut already: the least work of a teacher."""
    return teacher.model.classify(teacher.model.crop_features(cut))


def same_teacher(teacher: ReIDTeacher, batch: list[dict], crops: Crops, cut: torch.Tensor) -> bool:
    """Return whether the terms read the teacher's outputs, up to rounding."""
    found = teacher.embed_crops(batch, crops)
    embeddings, logits = embed_alone(teacher, cut)
    return torch.allclose(found.embeddings, embeddings, rtol=1e-4, atol=1e-4) and (
        torch.allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    )


def cache_of(teacher: ReIDTeacher, batch: list[dict], path: Path) -> CropCache:
    """Build a memory-mapped cache of the batch's people, plain and mirrored."""
    features, first_row, count = [], {}, 0
    for x in batch:
        first_row[x["file_name"]] = count
        count += len(x["instances"])
        sides = [
            cut_crops(x["original_image"], boxes_of(x), teacher.input_size, mirror=mirror)
            for mirror in (False, True)
        ]
        features.append(torch.stack([teacher.features(side) for side in sides], dim=1))
    np.save(path, torch.cat(features).numpy())
    return CropCache(np.load(path, mmap_mode="r"), first_row)
