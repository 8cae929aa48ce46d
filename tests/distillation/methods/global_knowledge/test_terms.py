"""The terms of global knowledge on hand-made matches, against loops over the equations."""

import math
from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from tiny import tiny_cfg

from kd_search.distillation.methods.global_knowledge import (
    GlobalKnowledgeTerm,
    PrototypeBank,
    WeightedFeatureTerm,
    WeightedSoftLabelTerm,
)
from kd_search.distillation.methods.global_knowledge.match import (
    PROTOTYPE_BANK,
    PrototypeMatch,
    assign_levels,
    match_of,
)
from kd_search.losses import weighted_binary_soft_labels, weighted_soft_labels
from kd_search.outputs import (
    AnchorOutputs,
    AnchorSpec,
    AnchorTargets,
    ModelOutputs,
    ModelSpec,
    Part,
    RegionOutputs,
    RegionSpec,
    RegionTargets,
)

NAMES, STRIDES = ["p4", "p5"], [16, 32]
CELLS = [torch.tensor([[-8.0, -8.0, 8.0, 8.0]]), torch.tensor([[-16.0, -16.0, 16.0, 16.0]])]
BOXES = [[5, 5, 60, 70], [20, 0, 128, 96], [40, 30, 90, 90], [1, 2, 120, 95]]

GOLDEN = {
    "loss_global_knowledge": 0.5698686242103577,
    "loss_feature_foreground": 0.7175761461257935,
    "loss_feature_background": 1.4356658458709717,
    "loss_weighted_soft": 0.09754791855812073,
}
GOLDEN_ONE_STAGE = {"softmax": 0.40017056465148926, "binary": 0.508696973323822}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spec(channels=(3, 5), dense_classes=False, offset=0.0, **changes):
    features = {n: ShapeSpec(channels=c, stride=s) for n, s, c in zip(NAMES, STRIDES, channels)}
    own = ModelSpec(
        features=features,
        num_classes=2,
        anchors=AnchorSpec(CELLS, STRIDES, offset, (1.0,) * 4, dense_classes),
        regions=RegionSpec((10.0, 10.0, 5.0, 5.0)),
    )
    return replace(own, **changes)


def outputs(channels, seed, teacher_padding=0):
    """Seven regions, those of rows 1, 3, 4 and 6 foreground, and maps of two 96 x 128 images."""
    maps = {
        name: random(2, d, 96 // s + teacher_padding, 128 // s + teacher_padding, seed=seed + d)
        for name, s, d in zip(NAMES, STRIDES, channels)
    }
    logits = random(7, 3, seed=seed + 50)
    regions = RegionOutputs(
        [],
        logits=logits,
        foreground_logits=logits[[1, 3, 4, 6]],
        targets=RegionTargets(torch.tensor([2, 0, -1, 1, 1, 2, 0]), torch.zeros(4, 4)),
    )
    return ModelOutputs(features=maps, regions=regions)


def match(seed=0, attenuation=1.0, counts=(6, 3)):
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    weights = [torch.rand(4, generator=torch.Generator().manual_seed(seed + i)) for i in range(2)]
    return PrototypeMatch(
        boxes=boxes,
        image_index=torch.tensor([0, 0, 1, 1]),
        classes=torch.tensor([0, 1, 1, 0]),
        levels=assign_levels(boxes, 2, 35.0),
        names=NAMES,
        strides=STRIDES,
        weights=weights,
        student=[random(4, d, seed=seed + 10 + d) for d in (3, 5)],
        teacher=[random(4, d, seed=seed + 20 + d) for d in (4, 2)],
        prototypes_student=[random(n, d, seed=seed + 30) for n, d in zip(counts, (3, 5))],
        prototypes_teacher=[random(n, d, seed=seed + 40) for n, d in zip(counts, (4, 2))],
        attenuation=attenuation,
    )


def with_match(student, **changes):
    """The student's outputs with other fields of its match."""
    return student.with_extra(PROTOTYPE_BANK, replace(match_of(student), **changes))


def both(channels=((3, 5), (4, 2)), teacher_padding=0, **changes):
    student = outputs(channels[0], 0).with_extra(PROTOTYPE_BANK, match(**changes))
    return student, outputs(channels[1], 100, teacher_padding)


def slow_cosine(x, y):
    product = sum(a * b for a, b in zip(x, y))
    return product / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def test_global_knowledge_sums_levels_and_averages_regions():
    student, teacher = both(attenuation=0.25)
    known, expected = match_of(student), 0.0
    for level in range(2):
        lists = [
            part[level].double().tolist()
            for part in (
                *(known.student, known.teacher, known.prototypes_student),
                *(known.prototypes_teacher, known.weights),
            )
        ]
        for f_s, f_t, r in zip(lists[0], lists[1], lists[4]):
            for p_s, p_t in zip(lists[2], lists[3]):
                d = abs(r * slow_cosine(f_s, p_s) - r * slow_cosine(f_t, p_t))
                expected += (d * d / 2 if d < 1 else d - 0.5) / len(lists[2]) / 4
    found = GlobalKnowledgeTerm(loss_weight=3.0)(student, teacher)
    assert found.keys() == {"loss_global_knowledge"}
    assert float(found["loss_global_knowledge"]) == pytest.approx(3 * 0.25 * expected, rel=1e-5)


def connected(term, *specs):
    torch.manual_seed(0)
    term.setup(*(specs or (spec(), spec((4, 2)))))
    return term


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 2), ("sum", 1)])
@pytest.mark.parametrize("teacher_padding", [0, 2])
def test_features_weigh_the_cells_of_each_levels_own_boxes(teacher_padding, reduction, divisor):
    student, teacher = both(teacher_padding=teacher_padding, attenuation=0.5)
    known = match_of(student)
    assert known.levels.tolist() == [0, 1, 0, 1]
    term = connected(
        WeightedFeatureTerm(foreground_weight=2.0, background_weight=3.0, level_reduction=reduction)
    )
    expected = [0.0, 0.0]
    for level, (name, stride) in enumerate(zip(NAMES, STRIDES)):
        adapted = term.adapters[name](student.features[name]).detach().double()
        height, width = adapted.shape[2:]
        squares = adapted - teacher.features[name][..., :height, :width].double()
        sums = [[0.0, 0.0], [0.0, 0.0]]
        for image in range(2):
            for i in range(height):
                for j in range(width):
                    weight = None
                    for r in range(4):
                        x0, y0, x1, y1 = (v / stride for v in BOXES[r])
                        touches = x0 < j + 1 and j < x1 and y0 < i + 1 and i < y1
                        if touches and known.levels[r] == level and known.image_index[r] == image:
                            weight = max(weight or 0.0, float(known.weights[level][r]))
                    square = float(squares[image, :, i, j].square().sum())
                    side, mask = (1, 1.0) if weight is None else (0, weight)
                    sums[side][0] += mask * square
                    sums[side][1] += mask
        for side, (total, mask) in enumerate(sums):
            expected[side] += total / max(2 * squares.shape[1] * mask, 1) / divisor
    found = term(student, teacher)
    assert found.keys() == {"loss_feature_foreground", "loss_feature_background"}
    assert found["loss_feature_foreground"].item() == pytest.approx(2 * 0.5 * expected[0], rel=1e-5)
    assert found["loss_feature_background"].item() == pytest.approx(3 * 0.5 * expected[1], rel=1e-5)
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in term.parameters())
    assert {tuple(a.weight.shape) for a in term.adapters.values()} == {(4, 3, 3, 3), (2, 5, 3, 3)}


def test_adapters_of_one_cell_see_their_own_cell_alone():
    student, teacher = both()
    term = connected(WeightedFeatureTerm(adapter_kernel=1))
    assert {tuple(a.weight.shape) for a in term.adapters.values()} == {(4, 3, 1, 1), (2, 5, 1, 1)}
    assert all(bool(loss.isfinite()) for loss in term(student, teacher).values())
    with pytest.raises(ValueError, match="GLOBAL_KNOWLEDGE.ADAPTER_KERNEL 2"):
        WeightedFeatureTerm(adapter_kernel=2)


def test_soft_labels_of_the_foreground_by_the_weight_of_their_own_level():
    student, teacher = both(attenuation=0.0)
    known, expected = match_of(student), 0.0
    for row, (region, level) in enumerate(zip((1, 3, 4, 6), known.levels.tolist())):
        p, q = (k.regions.logits[region].double().div(3).softmax(0) for k in (teacher, student))
        kl = float((p * (p / q).log()).sum()) / 3
        expected += float(known.weights[level][row]) * 9 * kl / 4
    term = connected(WeightedSoftLabelTerm(temperature=3.0, loss_weight=0.5))
    found = term(student, teacher)
    assert found.keys() == {"loss_weighted_soft"}
    # Soft labels do not fade.
    assert float(found["loss_weighted_soft"]) == pytest.approx(0.5 * expected, rel=1e-5)
    assert term.teacher_parts == {Part.FOREGROUND_LOGITS}


#: (image, anchor) of the positive ones, image after image: three at the first level, two at the
#: second.
POSITIVE = [(0, 0), (0, 1), (0, 3), (1, 2), (1, 3)]


def one_stage():
    """Four anchors, three at the first level; positive in two images at both levels."""
    student, teacher = both()
    labels = torch.tensor([[1, 1, 0, 1], [-1, 0, 1, 1]], dtype=torch.int8)
    ours, theirs = (list((2 * random(2, 4, 2, seed=i)).split([3, 1], dim=1)) for i in (3, 4))
    targets = AnchorTargets(labels, torch.zeros(5, 4), 5.0)
    student = with_match(student, anchor_weights=torch.tensor([0.1, 0.9, 0.3, 0.7, 0.5]))
    return (
        replace(student, anchors=AnchorOutputs([], logits=ours, targets=targets)),
        replace(teacher, anchors=AnchorOutputs([], logits=theirs)),
    )


def slow_softmax_kl(theirs, ours):
    """Mean over the classes, of logits in lists."""
    p, q = ([math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in (theirs, ours))
    return sum(a * math.log(a / b) for a, b in zip(p, q)) / len(p)


def slow_binary_kl(theirs, ours):
    total = 0.0
    for x, y in zip(theirs, ours):
        p, q = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(-y))
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return total / len(theirs)


@pytest.mark.parametrize(
    ("divergence", "slow"), [("softmax", slow_softmax_kl), ("binary", slow_binary_kl)]
)
def test_every_positive_anchor_is_weighed_by_its_own_weight(divergence, slow):
    """The released code's weights are in this order, its logits in that of the levels."""
    student, teacher = one_stage()
    weights, expected = match_of(student).anchor_weights.tolist(), 0.0
    for (image, anchor), weight in zip(POSITIVE, weights):
        theirs, ours = (
            (torch.cat(k.anchors.logits, dim=1)[image, anchor].double() / 3).tolist()
            for k in (teacher, student)
        )
        expected += weight * 3**2 * slow(theirs, ours) / len(POSITIVE)
    dense = spec(dense_classes=True), spec((4, 2), dense_classes=True)
    term = WeightedSoftLabelTerm(
        one_stage=True, divergence=divergence, temperature=3.0, loss_weight=0.5
    )
    found = connected(term, *dense)(student, teacher)["loss_weighted_soft"]
    assert float(found) == pytest.approx(0.5 * expected, rel=1e-5)
    assert term.teacher_parts == {Part.ANCHOR_LOGITS} and term.needs_anchor_weights


def test_a_shift_of_all_classes_teaches_the_binary_labels_alone():
    """A softmax tells classes apart, not objects from background."""
    dense = spec(dense_classes=True), spec((4, 2), dense_classes=True)
    losses = {}
    for divergence in ("softmax", "binary"):
        student, teacher = one_stage()
        shifted = [x - 1.5 for x in teacher.anchors.logits]
        student = replace(student, anchors=replace(student.anchors, logits=shifted))
        term = connected(WeightedSoftLabelTerm(one_stage=True, divergence=divergence), *dense)
        losses[divergence] = float(term(student, teacher)["loss_weighted_soft"])
    assert losses["softmax"] == pytest.approx(0.0, abs=1e-6) and losses["binary"] > 0.01


@pytest.mark.parametrize("weights", [1.0, 0.3])
def test_a_student_equal_to_its_teacher_learns_nothing(weights):
    given = match()
    known = replace(
        given,
        student=[x.clone().requires_grad_() for x in given.teacher],
        prototypes_student=given.prototypes_teacher,
        weights=[torch.full((4,), weights)] * 2,
    )
    student = outputs((4, 2), 0).with_extra(PROTOTYPE_BANK, known)
    losses = GlobalKnowledgeTerm()(student, student)
    features = connected(WeightedFeatureTerm(), spec((4, 2)), spec((4, 2)))
    for adapter in features.adapters.values():
        adapter.weight.data.zero_()
        for channel in range(len(adapter.weight)):
            adapter.weight.data[channel, channel, 1, 1] = 1.0
        adapter.bias.data.zero_()
    losses.update(features(student, student))
    losses.update(connected(WeightedSoftLabelTerm())(student, student))
    assert len(losses) == 4
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7), name
    losses["loss_global_knowledge"].backward()
    for features in known.student:
        torch.testing.assert_close(features.grad, torch.zeros_like(features), rtol=0, atol=1e-7)


def test_weights_scale_the_soft_labels_and_never_the_background():
    student, teacher = both()
    labels, features = connected(WeightedSoftLabelTerm()), connected(WeightedFeatureTerm())
    student = with_match(student, weights=[torch.ones(4)] * 2)
    soft, maps = labels(student, teacher)["loss_weighted_soft"], features(student, teacher)
    student = with_match(student, weights=[torch.full((4,), 0.25)] * 2)
    torch.testing.assert_close(labels(student, teacher)["loss_weighted_soft"], 0.25 * soft)
    # A weight that all boxes share cancels in the weighted mean.
    for name, loss in features(student, teacher).items():
        torch.testing.assert_close(loss, maps[name])


def bank_outputs(classes=(0, 1)):
    student, teacher = outputs((3, 5), 0), outputs((4, 2), 100)
    for features in (student.features, teacher.features):
        for grid in features.values():
            grid.requires_grad_()
    images = []
    for rows in ((0, 1), (2, 3)):
        image = Instances((96, 128))
        image.gt_boxes = Boxes(torch.tensor([BOXES[r] for r in rows[: len(classes)]]).view(-1, 4))
        image.gt_classes = torch.tensor(classes, dtype=torch.int64)
        images.append(image)
    # Without proposals, the regions are the annotated boxes.
    return replace(student, annotated=images, regions=None), teacher


def test_without_prototypes_the_global_loss_is_exactly_0_with_a_graph():
    bank = PrototypeBank(NAMES, STRIDES, [3, 5], [4, 2], num_classes=2)
    for classes in ((0, 1), ()):
        student, teacher = bank_outputs(classes)
        student = student.with_extra(PROTOTYPE_BANK, bank.compare(student, teacher))
        assert all((weights == 1).all() for weights in match_of(student).weights)
        loss = GlobalKnowledgeTerm()(student, teacher)["loss_global_knowledge"]
        assert float(loss.detach()) == 0.0
        loss.backward()
        assert all(not grid.grad.any() for grid in student.features.values())


def test_gradients_reach_the_student_alone():
    bank = PrototypeBank(NAMES, STRIDES, [3, 5], [4, 2], num_classes=2)
    for level, dims in enumerate(((3, 4), (5, 2))):
        parts = [random(3, d, seed=level) for d in dims]
        bank.put(level, 1, *parts, torch.arange(3), torch.zeros(3, 4))
    student, teacher = bank_outputs()
    student = student.with_extra(PROTOTYPE_BANK, bank.compare(student, teacher))
    losses = GlobalKnowledgeTerm()(student, teacher)
    losses.update(connected(WeightedFeatureTerm())(student, teacher))
    sum(losses.values()).backward()
    assert all(grid.grad.any() for grid in student.features.values())
    assert all(grid.grad is None for grid in teacher.features.values())


@pytest.mark.parametrize("one", [False, True])
def test_no_region_is_zero_with_a_graph(one):
    student, teacher = one_stage() if one else both()
    known = match_of(student)
    nothing = {name: getattr(known, name)[:0] for name in ("boxes", "image_index", "classes")}
    student = with_match(
        student,
        **nothing,
        levels=known.levels[:0],
        weights=[w[:0] for w in known.weights],
        anchor_weights=torch.zeros(0),
    )
    if one:
        labels = torch.zeros_like(student.anchors.targets.labels)
        targets = replace(student.anchors.targets, labels=labels)
        student = replace(student, anchors=replace(student.anchors, targets=targets))
    background = RegionTargets(torch.full((7,), 2), torch.zeros(0, 4))
    student = replace(student, regions=replace(student.regions, targets=background))
    none = replace(teacher.regions, foreground_logits=teacher.regions.foreground_logits[:0])
    teacher = replace(teacher, regions=none)
    leaves = student.anchors.logits if one else [student.regions.logits]
    for leaf in leaves:
        leaf.requires_grad_()
    dense = spec(dense_classes=True)
    loss = connected(WeightedSoftLabelTerm(one_stage=one), dense, dense)(student, teacher)
    loss["loss_weighted_soft"].backward()
    assert float(loss["loss_weighted_soft"].detach()) == 0.0
    assert all(not leaf.grad.any() for leaf in leaves)
    features = connected(WeightedFeatureTerm())(student, teacher)
    assert float(features["loss_feature_foreground"].detach()) == 0.0
    assert features["loss_feature_background"] > 0


def test_golden_numbers():
    """Written down from this code at fixed seeds, after it agreed with the loops."""
    student, teacher = both(attenuation=0.75)
    adapted = WeightedFeatureTerm()
    adapted.setup(spec(), spec((4, 2)))
    for i, adapter in enumerate(adapted.adapters.values()):
        adapter.weight.data.copy_(random(*adapter.weight.shape, seed=i) / 5)
        adapter.bias.data.zero_()
    losses = GlobalKnowledgeTerm()(student, teacher)
    losses.update(adapted(student, teacher))
    losses.update(connected(WeightedSoftLabelTerm())(student, teacher))
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(
        GOLDEN, rel=1e-5
    )
    dense = spec(dense_classes=True)
    for divergence, golden in GOLDEN_ONE_STAGE.items():
        term = connected(WeightedSoftLabelTerm(one_stage=True, divergence=divergence), dense, dense)
        loss = term(*one_stage())["loss_weighted_soft"]
        assert float(loss) == pytest.approx(golden, rel=1e-5)


def test_values_of_the_config_arrive():
    node = "DISTILLATION.GLOBAL_KNOWLEDGE"
    cfg = tiny_cfg("fpn", f"{node}.FEATURES", ["p4"], f"{node}.WEIGHTED", False)
    term = GlobalKnowledgeTerm(cfg)
    assert (term.loss_weight, term.needs_prototypes) == (5.0, True)
    assert tuple(term.companions) == (PROTOTYPE_BANK,)
    term = WeightedFeatureTerm(cfg)
    assert (term.foreground_weight, term.background_weight, term.features) == (1.0, 4.0, ("p4",))
    assert not term.needs_prototypes and not WeightedSoftLabelTerm(cfg).needs_prototypes
    cfg = tiny_cfg("fpn")
    term = WeightedSoftLabelTerm(cfg)
    assert (term.loss_weight, term.temperature, term.needs_prototypes) == (1.0, 2.0, True)
    assert WeightedFeatureTerm(cfg).needs_prototypes and not term.one_stage
    assert not term.needs_anchor_weights


@pytest.mark.parametrize("name", ["RetinaNet", "DistillableRetinaNet", "GeneralizedRCNN"])
def test_reductions_by_key_are_those_of_the_released_code(name):
    """Five levels: the sum of a one-stage student is five times the mean of a two-stage one."""
    node, one = "DISTILLATION.GLOBAL_KNOWLEDGE", name != "GeneralizedRCNN"
    cfg = tiny_cfg("fpn", "DISTILLATION.STUDENT_META_ARCH", name)
    labels = WeightedSoftLabelTerm(cfg)
    assert (labels.one_stage, labels.needs_anchor_weights) == (one, one)
    assert labels.divergence is weighted_soft_labels
    losses = torch.arange(5.0)
    reduced = {"auto": 10.0 if one else 2.0, "mean": 2.0, "sum": 10.0}
    for reduction, expected in reduced.items():
        cfg.merge_from_list([f"{node}.LEVEL_REDUCTION", reduction])
        assert float(WeightedFeatureTerm(cfg).reduce_levels(losses, dim=0)) == expected
    cfg.merge_from_list([f"{node}.ONE_STAGE_DIVERGENCE", "binary"])
    chosen = weighted_binary_soft_labels if one else weighted_soft_labels
    assert WeightedSoftLabelTerm(cfg).divergence is chosen


def test_misfits_are_refused_in_one_line():
    dense = spec(dense_classes=True)
    for term, specs, message in (
        (
            WeightedSoftLabelTerm(),
            (spec(), spec(regions=None)),
            "WeightedSoftLabelTerm.*teacher.*region heads",
        ),
        (
            WeightedSoftLabelTerm(),
            (spec(), spec(regions=RegionSpec((10.0,) * 4, softmax=False))),
            "USE_SIGMOID_CE",
        ),
        (
            WeightedSoftLabelTerm(one_stage=True),
            (dense, spec()),
            "WeightedSoftLabelTerm.*RPN.*one-stage",
        ),
        (
            WeightedSoftLabelTerm(one_stage=True),
            (dense, spec(dense_classes=True, offset=0.5)),
            "WeightedSoftLabelTerm.*MODEL.ANCHOR_GENERATOR",
        ),
        (WeightedFeatureTerm(), (spec(), spec(features={})), r"p4 of stride 16.*\[\]"),
        (
            WeightedFeatureTerm(features=("p9",)),
            (spec(), spec()),
            "GLOBAL_KNOWLEDGE.FEATURES.*student.*'p9'",
        ),
        (WeightedFeatureTerm(), (spec(), spec(num_classes=0)), "teacher.*detector"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            term.setup(*specs)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="GLOBAL_KNOWLEDGE.TEMPERATURE 0"):
        WeightedSoftLabelTerm(temperature=0)
    for make, message in (
        (
            lambda: WeightedFeatureTerm(level_reduction="max"),
            "LEVEL_REDUCTION 'max'.*auto.*mean.*sum",
        ),
        (
            lambda: WeightedSoftLabelTerm(divergence="focal"),
            "ONE_STAGE_DIVERGENCE 'focal'.*binary.*softmax",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
