"""Steps with the terms of global knowledge (Tang et al., ECCV 2022) and random prototypes.

Student and teacher are those of the other steps. The time of a step depends on the number of
prototypes, not on their values.
"""

import copy

import torch
from _distill_networks import STUDENT, Pair, Step, build, build_teacher, config
from _distill_rows import overhead_row, same_detection_losses
from fvcore.nn import FlopCountAnalysis
from torch import nn

from kd_search.distillation import Distiller, FrozenTeacher, TeacherOutputAligner, build_terms
from kd_search.distillation.methods.global_knowledge import PrototypeBank

TERMS = ["GlobalKnowledgeTerm", "WeightedFeatureTerm", "WeightedSoftLabelTerm"]
MOST_OVERHEAD = 1.10


def global_knowledge_rows(harness) -> list[dict]:
    """Compare all three terms with the plain student's step and the teacher's backbone.

    The teacher's region heads, for the soft labels, count as overhead.
    """
    return [_row(harness, kernel) for kernel in (3, 1)]


def _row(harness, adapter_kernel: int) -> dict:
    pair = pair_with_prototypes(adapter_kernel)
    ours, student_step = Step(pair.distiller), Step(pair.plain)
    losses = ours.losses()
    equal = (
        same_detection_losses(ours, student_step)
        and all(bool(loss.isfinite()) for loss in losses.values())
        and float(losses["loss_global_knowledge"].detach()) > 0
    )
    teacher = pair.teacher.model

    def reference():
        student_step()
        with torch.no_grad():
            teacher.backbone(teacher.preprocess_image(ours.batch).tensor)

    timing = harness.compare(ours, reference)
    side = f"{adapter_kernel}x{adapter_kernel}"
    share = adapters_share(pair, ours.batch)
    harness.say(f"adapters {side}: {share:.3f} of the reference's multiplications")
    case = f"terms of global knowledge, adapters {side}, over plain student + teacher's backbone"
    return overhead_row(
        harness, case, timing, equal, limit=MOST_OVERHEAD, adapters_share_of_multiplications=share
    )


@torch.no_grad()
def adapters_share(pair: Pair, batch: list[dict]) -> float:
    """Multiplications of the adapters in a step divided by those of student and teacher's backbone.

    A trained layer has three times the multiplications of its forward pass, since its input and its
    weights get gradients. Region heads are not counted.
    """
    student, teacher = copy.deepcopy(pair.plain).eval(), pair.teacher.model
    images = student.preprocess_image(batch).tensor
    maps = student.backbone(images)
    rpn = student.proposal_generator
    ours = _multiplications(student.backbone, images)
    ours += _multiplications(rpn.rpn_head, [maps[name] for name in rpn.in_features])
    theirs = _multiplications(teacher.backbone, images)
    adapters = pair.distiller.terms["WeightedFeatureTerm"].adapters
    added = sum(_multiplications(adapter, maps[name]) for name, adapter in adapters.items())
    return 3 * added / (3 * ours + theirs)


def _multiplications(module: nn.Module, inputs) -> int:
    return FlopCountAnalysis(module, (inputs,)).unsupported_ops_warnings(False).total()


def pair_with_prototypes(adapter_kernel: int = 3) -> Pair:
    """Build a pair with a full bank: ``PER_CLASS`` prototypes of one class at every level."""
    cfg = config(STUDENT)
    cfg.DISTILLATION.TERMS = TERMS
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ADAPTER_KERNEL = adapter_kernel
    plain, model = build(cfg), build_teacher()
    student, teacher = plain.spec(), model.spec()
    terms = build_terms(cfg)
    bank = PrototypeBank(cfg, student, teacher)
    parts = bank.teacher_parts.union(*(term.teacher_parts for term in terms.values()))
    for level in range(bank.num_levels):
        ours, theirs = (getattr(bank, f"{side}_{level}")[0] for side in ("student", "teacher"))
        images = torch.arange(bank.per_class)
        boxes = torch.zeros(bank.per_class, 4)
        bank.put(level, 0, torch.randn_like(ours), torch.randn_like(theirs), images, boxes)
    frozen = FrozenTeacher(model, parts, TeacherOutputAligner(student, teacher))
    distiller = Distiller(
        student=copy.deepcopy(plain),
        terms=terms,
        teacher=frozen,
        companions={"PrototypeBank": bank},
    )
    return Pair(distiller.train(), plain, frozen)
