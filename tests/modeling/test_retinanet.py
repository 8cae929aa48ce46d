"""DistillableRetinaNet: Detectron2's RetinaNet to the bit, and its outputs for anchors."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import build_retinanet_resnet_fpn_backbone
from detectron2.utils.events import EventStorage
from tiny import picture
from tiny_retinanet import (
    NUM_CLASSES,
    batch,
    build,
    forward_train,
    object_input,
    tiny_retinanet_cfg,
)

from kd_search.modeling.backbones.resnet import build_width_retinanet_resnet_fpn_backbone
from kd_search.outputs import ANCHOR_PARTS, Part

LEVELS = ["p3", "p4", "p5", "p6", "p7"]
STRIDES = [8, 16, 32, 64, 128]


@pytest.fixture
def model():
    return build()


def test_detections_equal_detectron2s():
    overrides = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    theirs = build("RetinaNet", *overrides).eval()
    ours = build("DistillableRetinaNet", *overrides).eval()
    ours.load_state_dict(theirs.state_dict())
    inputs = [{"image": picture(0), "height": 192, "width": 256}, {"image": picture(1, (80, 60))}]
    with torch.no_grad():
        expected, found = theirs(inputs), ours(inputs)
    for a, b in zip(expected, found):
        a, b = a["instances"], b["instances"]
        assert len(a) > 10 and a.image_size == b.image_size
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)


def test_a_step_moves_the_loss_normaliser_once(model):
    _, outputs = forward_train(model, batch())
    positives = int((outputs.anchors.targets.labels == 1).sum())
    assert model.loss_normalizer == pytest.approx(0.9 * 100 + 0.1 * positives, abs=1e-9)


def test_every_parameter_gets_a_gradient_with_and_without_objects(model):
    for inputs in (batch(), [object_input(())]):
        model.zero_grad()
        losses, _ = forward_train(model, inputs)
        assert all(torch.isfinite(v) for v in losses.values())
        sum(losses.values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_outputs_have_one_entry_per_anchor(model):
    _, outputs = forward_train(model, batch())
    found = outputs.anchors
    cells = [(math.ceil(96 / s), math.ceil(128 / s)) for s in STRIDES]
    anchors = [9 * h * w for h, w in cells]
    assert list(outputs.features) == LEVELS
    assert [f.shape for f in outputs.features.values()] == [(2, 16, h, w) for h, w in cells]
    assert [a.shape for a in found.boxes] == [(a, 4) for a in anchors]
    assert [x.shape for x in found.logits] == [(2, a, NUM_CLASSES) for a in anchors]
    assert [x.shape for x in found.deltas] == [(2, a, 4) for a in anchors]
    assert found.targets.labels.shape == (2, sum(anchors))
    assert found.targets.labels.dtype == torch.int8
    assert found.targets.classes.shape == (2, sum(anchors))
    assert found.targets.classes.dtype == torch.int64
    assert outputs.images.tensor.shape == (2, 3, 96, 128)
    assert outputs.regions is None and outputs.identities is None
    for x, kept in zip(batch(), outputs.annotated):
        assert torch.equal(kept.gt_boxes.tensor, x["instances"].gt_boxes.tensor)
        assert torch.equal(kept.gt_classes, x["instances"].gt_classes)
    assert all(x.requires_grad for x in found.logits + found.deltas)


def test_logits_and_deltas_lie_in_the_order_of_the_anchors(model):
    """Entry (y, x, a) of the flat axis is anchor a of cell (y, x), read by a slow loop."""
    model.eval()
    with torch.no_grad():
        _, outputs = forward_train(model, batch())
        logits, deltas = model.head([outputs.features[name] for name in LEVELS])
    found = outputs.anchors
    level, (height, width) = 1, logits[1].shape[-2:]
    for y in range(height):
        for x in range(width):
            for a in range(9):
                i = (y * width + x) * 9 + a
                left, top, right, bottom = found.boxes[level][i].tolist()
                assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((16 * x, 16 * y))
                size = 64 * 2 ** (a // 3 / 3)
                assert (right - left) * (bottom - top) == pytest.approx(size**2, rel=1e-4)
                assert (bottom - top) / (right - left) == pytest.approx(
                    (0.5, 1.0, 2.0)[a % 3], rel=1e-4
                )
                for n in range(2):
                    for k in range(NUM_CLASSES):
                        expected = logits[level][n, a * NUM_CLASSES + k, y, x]
                        assert found.logits[level][n, i, k] == expected
                    for k in range(4):
                        expected = deltas[level][n, a * 4 + k, y, x]
                        assert found.deltas[level][n, i, k] == expected


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def slow_targets(anchors, boxes, classes):
    """Label, class and (for positives) deltas of each anchor, one by one.

    An anchor belongs to the box of largest IoU: positive from 0.5, background below 0.4, ignored
    in between. The best anchors of a box are positive at any IoU, for the box they overlap most.
    """
    table = [[iou(box, anchor) for anchor in anchors] for box in boxes]
    labels, of_class, deltas = [], [], []
    for i, anchor in enumerate(anchors):
        column = [row[i] for row in table]
        best = max(column)
        box = boxes[column.index(best)]
        kept = any(row[i] == max(row) for row in table)
        label = 1 if best >= 0.5 or kept else 0 if best < 0.4 else -1
        labels.append(label)
        of_class.append({1: classes[column.index(best)], 0: NUM_CLASSES, -1: -1}[label])
        if label == 1:
            w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
            dx = ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / w
            dy = ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / h
            dw, dh = math.log((box[2] - box[0]) / w), math.log((box[3] - box[1]) / h)
            deltas.append([dx, dy, dw, dh])
    return labels, of_class, deltas


def test_labels_classes_and_targets_equal_a_slow_loop(model):
    inputs = [object_input(), object_input((), seed=2), object_input((2,), seed=1)]
    _, outputs = forward_train(model, inputs)
    found = outputs.anchors.targets
    anchors = torch.cat(outputs.anchors.boxes).double().tolist()
    targets = []
    for n, x in enumerate(inputs):
        boxes = x["instances"].gt_boxes.tensor.tolist()
        if not boxes:
            assert (found.labels[n] == 0).all()
            assert (found.classes[n] == NUM_CLASSES).all()
            continue
        labels, classes, deltas = slow_targets(anchors, boxes, x["instances"].gt_classes.tolist())
        assert found.labels[n].tolist() == labels
        assert found.classes[n].tolist() == classes
        assert {-1, 0, 1} == set(labels)
        targets += deltas
    assert len(targets) == int((found.labels == 1).sum())
    expected = torch.tensor(targets)
    assert len(expected) > 3
    torch.testing.assert_close(found.deltas, expected, rtol=1e-4, atol=1e-5)


def test_the_hard_losses_follow_from_the_outputs(model):
    """Labels, classes and targets in the order of logits and deltas give back the losses."""
    losses, outputs = forward_train(model, batch())
    targets = outputs.anchors.targets
    positive = targets.labels == 1
    deltas = torch.cat(outputs.anchors.deltas, dim=1)[positive].double()
    loss = (deltas - targets.deltas.double()).abs().sum() / model.loss_normalizer
    torch.testing.assert_close(losses["loss_box_reg"].double(), loss, rtol=1e-5, atol=1e-7)
    logits = torch.cat(outputs.anchors.logits, dim=1).double()
    total = 0.0
    for row, label, of_class in zip(
        logits.flatten(0, 1), targets.labels.flatten(), targets.classes.flatten()
    ):
        if label < 0:
            continue
        for k, p in enumerate(row.sigmoid().tolist()):
            is_object = label == 1 and k == of_class
            right, alpha = (p, 0.25) if is_object else (1 - p, 0.75)
            total -= alpha * (1 - right) ** 2 * math.log(right)
    assert losses["loss_cls"].item() == pytest.approx(total / model.loss_normalizer, rel=1e-5)


def test_targets_are_scaled_by_the_weights_of_the_box_transform(model):
    _, plain = forward_train(model, batch())
    weights = (10.0, 10.0, 5.0, 5.0)
    model = build("DistillableRetinaNet", "MODEL.RETINANET.BBOX_REG_WEIGHTS", weights)
    _, scaled = forward_train(model, batch())
    expected = plain.anchors.targets.deltas * torch.tensor(weights)
    torch.testing.assert_close(scaled.anchors.targets.deltas, expected)
    assert model.spec().anchors.delta_weights == weights


def test_an_image_without_objects_has_no_targets(model):
    losses, outputs = forward_train(model, [object_input(())])
    assert losses["loss_box_reg"] == 0
    assert outputs.anchors.targets.deltas.shape == (0, 4)
    assert (outputs.anchors.targets.labels == 0).all()


@pytest.mark.parametrize(
    "parts",
    [
        {Part.FEATURES},
        {Part.ANCHOR_LOGITS},
        {Part.ANCHOR_DELTAS},
        {Part.FEATURES, Part.ANCHOR_LOGITS, Part.ANCHOR_DELTAS},
    ],
)
def test_a_teacher_computes_the_required_parts_without_gradient(parts):
    teacher = build().eval()
    ran = set()
    for name in ("cls_subnet", "bbox_subnet"):
        module = getattr(teacher.head, name)
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    with torch.no_grad():
        _, expected = forward_train(teacher, batch())
    ran.clear()
    outputs = teacher.forward_teacher(batch(), frozenset(parts))
    needed = {Part.ANCHOR_LOGITS: "cls_subnet", Part.ANCHOR_DELTAS: "bbox_subnet"}
    assert ran == {needed[part] for part in parts if part in needed}
    assert list(outputs.features) == list(expected.features) == LEVELS
    for part in parts:
        values, reference = outputs.get(part), expected.get(part)
        if part is Part.FEATURES:
            values, reference = list(values.values()), list(reference.values())
        assert len(values) == len(LEVELS)
        for a, b in zip(values, reference):
            assert torch.equal(a, b) and not a.requires_grad
    for part in ANCHOR_PARTS - parts:
        with pytest.raises(ValueError, match=part.value):
            outputs.get(part)
    assert (outputs.anchors is None) == (parts == {Part.FEATURES})
    if outputs.anchors is not None:
        assert all(torch.equal(a, b) for a, b in zip(outputs.anchors.boxes, expected.anchors.boxes))


def test_a_head_of_another_class_runs_as_a_whole(model):
    class Doubled(type(model.head)):
        def forward(self, features):
            logits, deltas = super().forward(features)
            return [2 * x for x in logits], deltas

    model.eval()
    plain = model.forward_teacher(batch(), frozenset({Part.ANCHOR_LOGITS})).anchors
    model.head.__class__ = Doubled
    doubled = model.forward_teacher(batch(), frozenset({Part.ANCHOR_LOGITS})).anchors
    for a, b in zip(plain.logits, doubled.logits):
        assert torch.equal(2 * a, b)
    assert doubled.deltas is None


def test_spec(model):
    spec = model.spec()
    assert spec.parts == {Part.FEATURES} | ANCHOR_PARTS
    assert spec.features == {
        name: ShapeSpec(channels=16, stride=stride) for name, stride in zip(LEVELS, STRIDES)
    }
    assert spec.num_classes == NUM_CLASSES and spec.anchors.dense_classes
    assert spec.size_divisibility == 32 and spec.image_format == "BGR"
    assert spec.anchors.strides == STRIDES and spec.anchors.offset == 0.0
    assert spec.anchors.delta_weights == (1.0, 1.0, 1.0, 1.0)
    assert spec.regions is None and spec.identities is None
    assert [c.shape for c in spec.anchors.cells] == [(9, 4)] * 5
    for cell, size in zip(spec.anchors.cells, (32, 64, 128, 256, 512)):
        # The second of three aspect ratios at the first of three scales: a square.
        assert cell[1].tolist() == [-size / 2, -size / 2, size / 2, size / 2]
    _, outputs = forward_train(model, batch())
    for cell, boxes in zip(spec.anchors.cells, outputs.anchors.boxes):
        assert torch.equal(cell, boxes[:9])
    spec.anchors.cells[0].zero_()
    assert model.spec().anchors.cells[0].abs().sum() > 0


def test_spec_follows_the_config():
    spec = build(
        "DistillableRetinaNet",
        *("INPUT.FORMAT", "RGB", "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
        *("MODEL.RETINANET.NUM_CLASSES", 7, "MODEL.FPN.OUT_CHANNELS", 8),
    ).spec()
    assert spec.image_format == "RGB" and spec.anchors.offset == 0.5
    assert spec.num_classes == 7 and spec.features["p3"].channels == 8


def test_pictures_of_training_change_neither_losses_nor_outputs():
    overrides = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    expected, reference = forward_train(build("DistillableRetinaNet", *overrides), batch())
    model = build("DistillableRetinaNet", "VIS_PERIOD", 2, *overrides)
    with EventStorage(start_iter=1) as storage:
        model.forward_train(batch())
        assert storage._vis_data == []
    model = build("DistillableRetinaNet", "VIS_PERIOD", 2, *overrides)
    with EventStorage(start_iter=2) as storage:
        losses, outputs = model.forward_train(batch())
        assert [name for name, _, _ in storage._vis_data] != []
    assert losses == expected
    for a, b in zip(reference.anchors.logits, outputs.anchors.logits):
        assert torch.equal(a, b)
    sum(losses.values()).backward()


def test_full_width_backbone_takes_the_names_and_shapes_of_detectron2s():
    for depth, channels in ((18, 64), (50, 256)):
        cfg = tiny_retinanet_cfg(
            *("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", channels),
            *("MODEL.RESNETS.WIDTH_MULTIPLIER", 1.0),
        )
        ours = build_width_retinanet_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
        theirs = build_retinanet_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }
        assert ours.output_shape() == theirs.output_shape()


def test_a_backbone_without_res5_is_refused():
    levels = ["res3", "res4"]
    cfg = tiny_retinanet_cfg("MODEL.RESNETS.OUT_FEATURES", levels, "MODEL.FPN.IN_FEATURES", levels)
    with pytest.raises(ValueError, match="must contain 'res5'"):
        build_width_retinanet_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
