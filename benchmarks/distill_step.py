"""A distillation step against what it cannot do without: the student's step and the teacher.

Networks and batch size are those of the generated set (half-width ResNet-18 student, ResNet-18
teacher, four scenes of 320x192). A step is forward, backward, optimizer and table update.

* frozen table: a student taught by a pre-computed ID table, over the plain student with a table of
  its own (no teacher runs);
* teacher: a student whose terms read the teacher's region logits and embeddings, over the plain
  student's step plus the same teacher judging the same regions, called on its own.
"""

import copy
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.functional import normalize

from kd_search import add_kd_search_config
from kd_search.distillation import Distiller, IDTableTerm, Teacher
from kd_search.modeling import IDTable

REPO = Path(__file__).resolve().parent.parent
NUM_IDS = 60
BATCH_SIZE = 4
MOST_OVERHEAD = 1.05
FIELDS = frozenset({"region_logits", "embeddings"})


class ReadEverything(nn.Module):
    """The cheapest term there can be that reads what the teacher says."""

    teacher_fields = FIELDS

    def forward(self, student, teacher):
        logits = (student.region_logits - teacher.region_logits).square().mean()
        embeddings = (student.embeddings - teacher.embeddings).square().sum(dim=1).mean()
        return {"loss_read": logits + embeddings}


def run(harness):
    return [frozen_table(harness), running_teacher(harness)]


def frozen_table(harness):
    plain = build("student_r18w50_fpn")
    table = IDTable(num_ids=NUM_IDS, queue_size=200, embedding_dim=256, frozen=True)
    table.load_rows(normalize(torch.randn(NUM_IDS, 256), dim=1))
    student = copy.deepcopy(plain)
    student.roi_heads.reid.id_table = None
    distiller = Distiller(
        student=student, terms=nn.ModuleDict({"IDTableTerm": IDTableTerm(table=table)})
    )
    ours, reference = Step(distiller), Step(plain)
    equal = same_detection_losses(ours, reference)
    timing = harness.compare(ours, reference)
    return overhead_row(harness, "frozen table over plain student", timing, equal)


def running_teacher(harness):
    plain = build("student_r18w50_fpn")
    teacher = Teacher(build("teacher_r18_fpn"), FIELDS)
    distiller = Distiller(
        student=copy.deepcopy(plain),
        terms=nn.ModuleDict({"ReadEverything": ReadEverything()}),
        teacher=teacher,
    )
    ours, student_step = Step(distiller), Step(plain)
    equal = same_detection_losses(ours, student_step)
    torch.manual_seed(0)
    with EventStorage():
        _, knowledge = plain.forward_train(ours.batch)

    def reference():
        student_step()
        teacher.observe(ours.batch, knowledge)

    timing = harness.compare(ours, reference)
    return overhead_row(harness, "observed teacher over plain student + teacher", timing, equal)


def overhead_row(harness, case: str, timing, equal: bool) -> dict:
    return harness.row(
        case,
        ours_s=timing.ours_s,
        reference_s=timing.reference_s,
        equal=equal,
        limit=MOST_OVERHEAD,
        ratio_is="overhead",
    )


def build(name: str) -> nn.Module:
    cfg = get_cfg()
    add_kd_search_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / "generated" / f"{name}.yaml"))
    cfg.MODEL.OIM.NUM_IDS = NUM_IDS
    torch.manual_seed(0)
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).train()


def make_batch() -> list[dict]:
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
    """One training step of a model on one batch; every call samples the same regions."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.batch = make_batch()
        # No learning rate: the work of a step, but every run does the same.
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


def same_detection_losses(ours: Step, reference: Step) -> bool:
    """Distillation must not change what the student's own detection losses are."""
    names = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
    a, b = ours.losses(), reference.losses()
    return all(torch.equal(a[name], b[name]) for name in names)
