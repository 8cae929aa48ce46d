"""Students and teachers of the generated set, their batch, and one training step of them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from kd_search.config import get_cfg
from kd_search.distillation import Distiller, FrozenTeacher, TeacherOutputAligner, build_terms
from kd_search.modeling import IDTable

REPO = Path(__file__).resolve().parent.parent
STUDENT, TEACHER = "student_r18w50_fpn", "teacher_r18_fpn"
NUM_IDS = 60
BATCH_SIZE = 4
ALL_TERMS = [
    "RegionClassTerm",
    "RegionRegressionTerm",
    "AnchorClassTerm",
    "AnchorRegressionTerm",
    "HintTerm",
]


def config(name: str, folder: Path = REPO / "configs" / "generated") -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / f"{name}.yaml"))
    cfg.MODEL.OIM.NUM_IDS = cfg.MODEL.REID_NETWORK.NUM_IDS = NUM_IDS
    return cfg


def build(cfg: CfgNode, architecture: str = "") -> nn.Module:
    torch.manual_seed(0)
    return META_ARCH_REGISTRY.get(architecture or cfg.MODEL.META_ARCHITECTURE)(cfg).train()


def set_statistics(model: nn.Module, forward: Callable[[], object]) -> None:
    """Set the running statistics of batch normalisation to those of one forward pass.

    With initial statistics, the features of random weights grow from layer to layer.
    """
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    with EventStorage(), torch.no_grad():
        forward()


def build_teacher() -> nn.Module:
    """Build a teacher with random weights, in evaluation mode."""
    teacher = build(config(TEACHER))
    set_statistics(teacher, lambda: teacher.forward_train(make_batch()))
    return teacher.eval()


@dataclass
class Pair:
    """A student with a running teacher, and the same student without."""

    distiller: Distiller
    plain: nn.Module
    teacher: FrozenTeacher

    @property
    def hard_loss_factors(self) -> dict[str, float]:
        """Factors of the student's own losses, by name."""
        terms = self.distiller.terms.values()
        return {name: f for term in terms for name, f in term.hard_loss_factors.items()}


def all_terms(device: str = "cpu") -> Pair:
    """Build a pair with all terms of detector distillation at their default weights."""
    cfg = config(STUDENT)
    cfg.DISTILLATION.TERMS = ALL_TERMS
    return with_teacher(build_terms(cfg), device)


def with_teacher(terms: nn.ModuleDict, device: str = "cpu") -> Pair:
    plain, model = build(config(STUDENT)), build_teacher()
    parts = frozenset().union(*(term.teacher_parts for term in terms.values()))
    teacher = FrozenTeacher(model, parts, TeacherOutputAligner(plain.spec(), model.spec()))
    distiller = Distiller(student=copy.deepcopy(plain), terms=terms, teacher=teacher).train()
    return Pair(distiller.to(device), plain.to(device), teacher)


def make_batch() -> list[dict]:
    """Four people in each of four scenes of 320x192."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(BATCH_SIZE):
        corners = torch.rand(4, 2, generator=generator) * torch.tensor([270.0, 90.0])
        people = Instances((192, 320))
        people.gt_boxes = Boxes(torch.cat([corners, corners + torch.tensor([40.0, 95.0])], dim=1))
        people.gt_classes = torch.zeros(4, dtype=torch.int64)
        people.gt_person_ids = torch.randint(-1, NUM_IDS, (4,), generator=generator)
        image = torch.randint(0, 256, (3, 192, 320), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": people})
    return batch


class Step:
    """Training step of a model on one batch; every call samples the same regions."""

    def __init__(self, model: nn.Module, batch: Optional[list[dict]] = None):
        self.model = model
        self.batch = batch or make_batch()
        # With learning rate 0 every run does the same work.
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        self.tables = [m for m in model.modules() if isinstance(m, IDTable)]

    def losses(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        with EventStorage():
            return self.model(self.batch)

    def __call__(self) -> None:
        losses = self.losses()
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        for table in self.tables:
            table.commit()
