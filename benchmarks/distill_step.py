"""A distillation step against what it cannot do without: the student's step and the teacher.

Networks and batch size are those of the generated set (half-width ResNet-18 student, ResNet-18
teacher, four scenes of 320x192). A step is forward, backward, optimizer and table update.

* frozen table: a student taught by a pre-computed ID table, over the plain student with a table of
  its own (no teacher runs);
* teacher: a student whose terms read the teacher's region logits and embeddings, over the plain
  student's step plus the same teacher on the same regions, called on its own;
* all terms: soft labels and bounded regression of regions and anchors and hints, over the plain
  student's step plus the teacher's backbone, RPN head and region heads, called on their own;
* re-ID teacher: the terms of DKD and an external network on crops, over the plain student's step
  plus that network on the same crops; from a cache, over the plain student's step alone;
* global knowledge: its three terms and full prototypes, over the plain student's step plus the
  teacher's backbone;
* the memory of a step with all terms of a detector beyond the plain student's: at its
  peak, and what is kept for backward; on a GPU too, where there is one.
"""

import copy
from unittest.mock import patch

import torch
from _distill_global_knowledge import global_knowledge_rows
from _distill_networks import (
    NUM_IDS,
    STUDENT,
    Pair,
    Step,
    all_terms,
    build,
    config,
    make_batch,
    with_teacher,
)
from _distill_reid import reid_rows
from _distill_rows import overhead_row, same_detection_losses
from _step_memory import tensor_bytes, traced
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from kd_search.distillation import DistillationTerm, Distiller
from kd_search.distillation.methods.id_table import IDTableTerm
from kd_search.modeling import IDTable
from kd_search.outputs import ModelOutputs, Part

MOST_OVERHEAD_OF_ALL_TERMS = 1.10
MB = 1e6


class ReadEverything(DistillationTerm):
    """The cheapest term that reads outputs of the teacher."""

    student_parts = teacher_parts = frozenset({Part.REGION_LOGITS, Part.EMBEDDINGS})

    def forward(self, student, teacher):
        logits, embeddings = (
            student.get(part) - teacher.get(part) for part in (Part.REGION_LOGITS, Part.EMBEDDINGS)
        )
        return {"loss_read": logits.square().mean() + embeddings.square().sum(dim=1).mean()}


def run(harness):
    rows = [frozen_table(harness), running_teacher(harness), *every_term(harness)]
    rows += reid_rows(harness) + global_knowledge_rows(harness)
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        rows += memory(harness, device)
    return rows


def frozen_table(harness):
    plain = build(config(STUDENT))
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
    pair = with_teacher(nn.ModuleDict({"ReadEverything": ReadEverything()}))
    ours, student_step = Step(pair.distiller), Step(pair.plain)
    equal = same_detection_losses(ours, student_step)
    outputs = outputs_of(pair.plain, ours.batch)

    def reference():
        student_step()
        pair.teacher.forward_regions(pair.teacher.forward_teacher(ours.batch), outputs)

    timing = harness.compare(ours, reference)
    return overhead_row(harness, "observed teacher over plain student + teacher", timing, equal)


def every_term(harness):
    """Time of a step with all terms, and whether the teacher did more than it has to."""
    pair = all_terms()
    ours, student_step = Step(pair.distiller), Step(pair.plain)
    outputs = outputs_of(pair.plain, ours.batch)
    equal = (
        same_detection_losses(ours, student_step, pair.hard_loss_factors)
        and all(bool(loss.isfinite()) for loss in ours.losses().values())
        and same_teacher(pair, outputs, ours.batch)
    )
    surplus = surplus_calls(pair, ours, student_step)

    def reference():
        student_step()
        run_alone(pair.teacher.model, ours.batch, outputs)

    timing = harness.compare(ours, reference)
    case = "all terms over plain student + teacher's backbone, RPN head and region heads"
    return [
        overhead_row(harness, case, timing, equal, limit=MOST_OVERHEAD_OF_ALL_TERMS),
        harness.value_row(
            "proposal generation and NMS of the teacher in a step with all terms",
            value=surplus,
            unit="calls",
            limit=0,
        ),
    ]


def memory(harness, device: str) -> list[dict]:
    """What a step with all terms needs beyond a plain one, at its peak and until its backward.

    Everything counts from the building of the networks on: weights, gradients, momentum. The second
    step starts as every later one does, with the gradients of the one before.
    """

    def two_steps(make_model):
        step = Step(make_model().to(device))
        step()
        step()
        return step

    ours, _ = traced(lambda: two_steps(lambda: all_terms().distiller), device)
    plain, _ = traced(lambda: two_steps(lambda: build(config(STUDENT))), device)
    pair, batch = all_terms(device), make_batch()
    teacher = pair.teacher.model
    weights = tensor_bytes(*teacher.state_dict().values())
    outputs = outputs_of(pair.plain, batch)
    # Without gradient a map lives only until its last reader: this is the largest set of them.
    maps, handed_on = traced(lambda: run_alone(teacher, batch, outputs), device)
    harness.say(
        f"{device}: peak of a step {plain / MB:.1f} MB plain, {ours / MB:.1f} MB with all terms; "
        f"the teacher's weights {weights / MB:.1f} MB, its feature maps alive at once "
        f"{maps / MB:.1f} MB, of which it hands on {handed_on / MB:.1f} MB"
    )
    kept = kept_for_backward(harness, pair, outputs, device)
    return [
        harness.value_row(
            f"{device}: peak memory of a step with all terms beyond a plain one; limit: the "
            "teacher's weights, what may be kept for backward, the gradients of adapters' outputs",
            value=(ours - plain) / MB,
            unit="MB",
            # The teacher's activations are freed before the student begins.
            limit=weights / MB + kept["limit"] + kept["adapter_outputs_mb"],
            plain_mb=plain / MB,
            ours_mb=ours / MB,
            teacher_weights_mb=weights / MB,
            teacher_maps_mb=maps / MB,
            teacher_maps_handed_on_mb=handed_on / MB,
        ),
        kept,
    ]


def kept_for_backward(harness, pair: Pair, student: ModelOutputs, device: str) -> dict:
    """Row of what the graph holds between forward and backward, beyond a plain step's."""
    batch = make_batch()
    ours, plain = (traced(Step(model).losses, device)[1] for model in (pair.distiller, pair.plain))
    teacher = pair.teacher.model
    observed = pair.teacher.forward_regions(pair.teacher.forward_teacher(batch), student)
    names = pair.distiller.terms["HintTerm"].pairs
    hints = tensor_bytes(*(observed.features[theirs] for _, theirs in names))
    adapted = hints  # made in the shape of the teacher's maps
    inputs = tensor_bytes(*(student.features[own] for own, _ in names))
    predicted = tensor_bytes(
        *observed.anchors.logits,
        *observed.anchors.deltas,
        observed.regions.logits,
        observed.regions.deltas,
    )
    limit = hints + adapted + inputs + predicted
    teacher.requires_grad_(True)
    graph = traced(lambda: run_alone(teacher, batch, student, graph=True), device)[1]
    teacher.requires_grad_(False)
    harness.say(
        f"{device}: kept for backward {(ours - plain) / MB:.1f} MB: the teacher's maps "
        f"{hints / MB:.1f}, the adapters' outputs {adapted / MB:.1f} and inputs up to "
        f"{inputs / MB:.1f}, logits and deltas up to {predicted / MB:.1f}; a teacher with a graph "
        f"would keep {graph / MB:.1f} MB"
    )
    if graph <= limit:
        raise RuntimeError("a teacher with a graph would pass: this row could not fail")
    return harness.value_row(
        f"{device}: memory kept for backward beyond a plain step's; limit: the teacher's maps, "
        "logits and deltas that the terms read, the adapters' inputs and outputs",
        value=(ours - plain) / MB,
        unit="MB",
        limit=limit / MB,
        teacher_maps_mb=hints / MB,
        adapter_outputs_mb=adapted / MB,
        adapter_inputs_mb=inputs / MB,
        logits_and_deltas_mb=predicted / MB,
        teacher_with_graph_mb=graph / MB,
    )


def outputs_of(student: nn.Module, batch: list[dict]) -> ModelOutputs:
    """Of the regions that :class:`Step` samples; without its graph."""
    torch.manual_seed(0)
    with EventStorage(), torch.no_grad():
        return student.forward_train(batch)[1]


def run_alone(
    teacher: nn.Module, batch: list[dict], student: ModelOutputs, graph: bool = False
) -> tuple:
    """The least work of a teacher: its parts, by Detectron2's own calls."""
    with torch.set_grad_enabled(graph):
        features = teacher.backbone(teacher.preprocess_image(batch).tensor)
        maps = [features[name] for name in teacher.proposal_generator.in_features]
        anchors = teacher.proposal_generator.rpn_head(maps)
        heads = teacher.roi_heads
        regions = heads.box_pooler(
            [features[name] for name in heads.box_in_features],
            [p.proposal_boxes for p in student.regions.proposals],
        )
        return features, anchors, heads.box_predictor(heads.box_head(regions))


def same_teacher(pair: Pair, student: ModelOutputs, batch: list[dict]) -> bool:
    """Whether the terms read what the teacher outputs when called on its own."""
    observed = pair.teacher.forward_regions(pair.teacher.forward_teacher(batch), student)
    features, _, (logits, deltas) = run_alone(pair.teacher.model, batch, student)
    return (
        all(torch.equal(observed.features[name], features[name]) for name in features)
        and torch.equal(observed.regions.logits, logits)
        and torch.equal(observed.regions.deltas, deltas)
    )


def surplus_calls(pair: Pair, ours: Step, plain: Step) -> int:
    """Calls of the teacher's proposal generation in a step, and NMS beyond the plain student's."""
    own, teachers = pair.distiller.student, pair.teacher.model
    with CountNMS() as nms_of_plain:
        plain.losses()
    with (
        spy(own.proposal_generator, "predict_proposals") as own_proposals,
        spy(teachers.proposal_generator, "forward") as rpn,
        spy(teachers.proposal_generator, "predict_proposals") as proposals,
        spy(teachers.roi_heads, "forward") as heads,
        CountNMS() as nms,
    ):
        ours.losses()
    if own_proposals.call_count != 1 or nms_of_plain.calls == 0:
        raise RuntimeError("the student's own proposals were not counted: this row could not fail")
    beyond = nms.calls - nms_of_plain.calls
    return rpn.call_count + proposals.call_count + heads.call_count + beyond


def spy(module: nn.Module, name: str):
    return patch.object(module, name, wraps=getattr(module, name))


class CountNMS(TorchDispatchMode):
    """Counts non-maximum suppressions of all modules."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.ops.torchvision.nms.default
        return func(*args, **(kwargs or {}))
