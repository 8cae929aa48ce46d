"""The detector terms on hand-made outputs, against loops over the equations."""

import math
from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec

from kd_search.distillation.methods.detector import (
    AnchorClassTerm,
    AnchorRegressionTerm,
    HintTerm,
    RegionClassTerm,
    RegionRegressionTerm,
)
from kd_search.outputs import (
    AnchorOutputs,
    AnchorSpec,
    AnchorTargets,
    ModelOutputs,
    ModelSpec,
    RegionOutputs,
    RegionSpec,
    RegionTargets,
)

CELLS = [torch.tensor([[-8.0, -16.0, 8.0, 16.0]]), torch.tensor([[-16.0, -32.0, 16.0, 32.0]])]


def spec(anchors=None, regions=None, **changes):
    """Specification of a network; ``anchors`` and ``regions`` change fields of these parts."""
    own = ModelSpec(
        features={
            "p4": ShapeSpec(channels=4, stride=16),
            "p5": ShapeSpec(channels=4, stride=32),
        },
        num_classes=2,
        size_divisibility=32,
        anchors=replace(AnchorSpec(CELLS, [8, 16], 0.0, (1.0,) * 4), **(anchors or {})),
        regions=replace(RegionSpec((10.0, 10.0, 5.0, 5.0)), **(regions or {})),
    )
    return replace(own, **changes)


def regions(seed):
    generator = torch.Generator().manual_seed(seed)
    return ModelOutputs(
        regions=RegionOutputs(
            proposals=[],
            logits=torch.randn(5, 3, generator=generator),
            deltas=torch.randn(5, 8, generator=generator),
            targets=RegionTargets(
                classes=torch.tensor([2, 0, 2, 1, 0]),
                deltas=torch.randn(3, 4, generator=generator),
            ),
        )
    )


def anchors(seed, classes=None):
    generator = torch.Generator().manual_seed(seed)
    tail = () if classes is None else (classes,)
    return ModelOutputs(
        anchors=AnchorOutputs(
            boxes=[],
            logits=[torch.randn(2, n, *tail, generator=generator) for n in (3, 2)],
            deltas=[torch.randn(2, n, 4, generator=generator) for n in (3, 2)],
            targets=AnchorTargets(
                labels=torch.tensor([[1, 0, -1, 0, -1], [-1, 1, 1, 0, 0]], dtype=torch.int8),
                deltas=torch.randn(3, 4, generator=generator),
                normalizer=8.0,
            ),
        )
    )


def connected(term, **changes):
    term.setup(spec(**changes), spec(**changes))
    return term


def test_region_classes_against_the_equation():
    student, teacher = regions(0), regions(1)
    term = connected(RegionClassTerm(hard_weight=0.2, loss_weight=3.0))
    expected = 0.0
    for own, given in zip(student.regions.logits.double(), teacher.regions.logits.double()):
        p, log_q = given.softmax(0), own.log_softmax(0)
        expected -= sum(w * float(p[c] * log_q[c]) for c, w in enumerate((1.0, 1.0, 1.5)))
    found = term(student, teacher)
    assert found.keys() == {"loss_region_soft"}
    assert float(found["loss_region_soft"]) == pytest.approx(0.8 * 3 * expected / 5, rel=1e-6)
    assert term.hard_loss_factors == {"loss_cls": 0.2}


def test_anchor_objectness_against_the_equation():
    student, teacher = anchors(0), anchors(1)
    term = connected(AnchorClassTerm(hard_weight=0.5))
    own, given = (torch.cat(k.anchors.logits, 1).double().sigmoid() for k in (student, teacher))
    expected = 0.0
    for n in range(2):
        for a in range(5):
            if student.anchors.targets.labels[n, a] >= 0:
                p, q = float(given[n, a]), float(own[n, a])
                expected -= p * math.log(q) + 1.5 * (1 - p) * math.log(1 - q)
    found = term(student, teacher)["loss_anchor_soft"]
    assert float(found) == pytest.approx(0.5 * expected / 8, rel=1e-6)
    assert term.hard_loss_factors == {"loss_rpn_cls": 0.5}


def test_dense_anchors_are_modulated_and_share_the_class_loss():
    student, teacher = anchors(0, classes=2), anchors(1, classes=2)
    term = connected(
        AnchorClassTerm(hard_weight=0.5, focal_gamma=2.0), anchors={"dense_classes": True}
    )
    own, given = (torch.cat(k.anchors.logits, 1).double().sigmoid() for k in (student, teacher))
    expected = 0.0
    for n in range(2):
        for a in range(5):
            for c in range(2):
                if student.anchors.targets.labels[n, a] >= 0:
                    p, q = float(given[n, a, c]), float(own[n, a, c])
                    bce = -p * math.log(q) - 1.5 * (1 - p) * math.log(1 - q)
                    expected += abs(p - q) ** 2 * bce
    found = term(student, teacher)["loss_anchor_soft"]
    assert float(found) == pytest.approx(0.5 * expected / 8, rel=1e-6)
    assert term.hard_loss_factors == {"loss_cls": 0.5}


@pytest.mark.parametrize("kind", ["bounded", "l2"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_region_regression_against_the_equation(kind, agnostic):
    student, teacher = regions(0), regions(1)
    if agnostic:
        narrow = replace(student.regions, deltas=student.regions.deltas[:, :4])
        student = replace(student, regions=narrow)
    term = connected(RegionRegressionTerm(kind=kind, margin=0.1, loss_weight=0.5))
    expected, paid, row = 0.0, 0, 0
    for r, c in enumerate(student.regions.targets.classes.tolist()):
        if c == 2:
            continue
        own = student.regions.deltas[r].double()
        own = own if agnostic else own[4 * c : 4 * c + 4]
        given = teacher.regions.deltas[r, 4 * c : 4 * c + 4].double()
        target = student.regions.targets.deltas[row].double()
        row += 1
        if kind == "l2":
            expected += float((own - given).square().sum())
            continue
        mine, theirs = (float((x - target).square().sum()) for x in (own, given))
        if mine + 0.1 > theirs:
            expected += mine
            paid += 1
    found = term(student, teacher)["loss_region_bounded"]
    assert float(found) == pytest.approx(0.5 * expected / 5, rel=1e-5)
    assert kind == "l2" or 0 < paid


def test_anchor_regression_against_the_equation():
    student, teacher = anchors(0), anchors(1)
    term = connected(AnchorRegressionTerm())
    own, given = (torch.cat(k.anchors.deltas, 1).double() for k in (student, teacher))
    expected, row = 0.0, 0
    for n in range(2):
        for a in range(5):
            if student.anchors.targets.labels[n, a] == 1:
                target = student.anchors.targets.deltas[row].double()
                row += 1
                mine, theirs = (float((x[n, a] - target).square().sum()) for x in (own, given))
                expected += mine if mine > theirs else 0.0
    assert row == 3
    found = term(student, teacher)["loss_anchor_bounded"]
    assert float(found) == pytest.approx(0.5 * expected / 8, rel=1e-5)


def test_hint_is_the_mean_over_pairs_after_the_adapters():
    torch.manual_seed(0)
    maps = {"p4": torch.randn(2, 4, 6, 8), "p5": torch.randn(2, 4, 3, 4)}
    given = {"p4": torch.randn(2, 4, 6, 8), "p5": torch.randn(2, 4, 3, 4)}
    term = connected(HintTerm(loss_weight=0.5))
    found = term(ModelOutputs(features=maps), ModelOutputs(features=given))["loss_hint"]
    expected = 0.0
    for name in maps:
        adapted = term.adapters[f"{name}_{name}"](maps[name]).detach()
        expected += float((adapted.double() - given[name].double()).square().mean()) / 2
    assert float(found.detach()) == pytest.approx(0.5 * expected, rel=1e-5)
    found.backward()
    assert all(p.grad is not None for p in term.parameters())


def test_hint_between_other_strides_and_channels():
    term = HintTerm(features=(("res4", "p3"),), norm="l1")
    term.setup(
        spec(features={"res4": ShapeSpec(channels=6, stride=16)}),
        spec(features={"p3": ShapeSpec(channels=3, stride=8)}),
    )
    student = ModelOutputs(features={"res4": torch.randn(1, 6, 5, 7)})
    # The teacher pads to a multiple of 32: its map is larger than twice the student's.
    teacher = ModelOutputs(features={"p3": torch.randn(1, 3, 12, 16)})
    assert torch.isfinite(term(student, teacher)["loss_hint"])


def test_hints_that_cannot_be_are_refused():
    narrow = spec(features={"p4": ShapeSpec(channels=2, stride=16)})
    with pytest.raises(ValueError, match="p4.*2 channels.*4.*HINT.ADAPTATION"):
        HintTerm(adaptation=False).setup(narrow, spec())
    with pytest.raises(ValueError, match=r"HINT.FEATURES.*\[res4\].*\[p4, p5\]"):
        HintTerm().setup(spec(features={"res4": ShapeSpec(channels=4, stride=16)}), spec())
    with pytest.raises(ValueError, match=r"HINT.FEATURES.*teacher.*'p9'.*\[p4, p5\]"):
        HintTerm(features=(("p4", "p9"),)).setup(spec(), spec())
    with pytest.raises(ValueError, match="HINT.NORM 'l3'"):
        HintTerm(norm="l3")
    with pytest.raises(ValueError, match=r"HINT.FEATURES.*'a', 'b', 'c'"):
        HintTerm(features=(("a", "b", "c"),))


@pytest.mark.parametrize("term", [AnchorClassTerm, AnchorRegressionTerm])
@pytest.mark.parametrize(
    "changes",
    [
        {"anchors": {"cells": [CELLS[0], CELLS[1] * 2]}},
        {"anchors": {"cells": CELLS[:1], "strides": [8]}},
        {"anchors": {"strides": [8, 32]}},
        {"anchors": {"offset": 0.5}},
        {"size_divisibility": 0},
    ],
)
def test_anchors_that_differ_are_refused_and_both_sets_printed(term, changes):
    with pytest.raises(ValueError) as error:
        term().setup(spec(), spec(**changes))
    message = str(error.value)
    assert term.__name__ in message and "\n" not in message
    assert "student {8: 16x32, 16: 32x64} at offset 0, images padded to multiples of 32" in message
    teacher = message[message.index("teacher {") :]
    assert teacher != message[message.index("student {") :].replace("student", "teacher")


def test_networks_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="AnchorClassTerm.*RPN.*one-stage"):
        AnchorClassTerm().setup(spec(), spec(anchors={"dense_classes": True}))
    with pytest.raises(ValueError, match="AnchorClassTerm.*teacher.*anchors"):
        AnchorClassTerm().setup(spec(), replace(spec(), anchors=None))
    for term in (RegionClassTerm, RegionRegressionTerm):
        with pytest.raises(ValueError, match=f"{term.__name__}.*student.*region heads"):
            term().setup(replace(spec(), regions=None), spec())
    with pytest.raises(ValueError, match="USE_SIGMOID_CE"):
        RegionClassTerm().setup(spec(), spec(regions={"softmax": False}))


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="SOFT_LABELS.HARD_WEIGHT 1.5"):
        RegionClassTerm(hard_weight=1.5)
    with pytest.raises(ValueError, match="SOFT_LABELS.TEMPERATURE 0"):
        AnchorClassTerm(temperature=0)
    with pytest.raises(ValueError, match="BOUNDED_REGRESSION.KIND 'l5'"):
        RegionRegressionTerm(kind="l5")
