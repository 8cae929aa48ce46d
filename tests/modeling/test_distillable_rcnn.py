"""DistillableRCNN: Detectron2's network, and its outputs as a student and as a teacher."""

import copy

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage
from tiny import detection_input, tiny_detector_cfg

from kd_search.modeling import as_distillable
from kd_search.outputs import ANCHOR_PARTS, REGION_PARTS, Part

# Detectron2's C4 heads have the published width only.
PUBLISHED_WIDTH = (
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.WIDTH_MULTIPLIER", 1.0),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4),
)


def pair_of_networks(kind, *overrides):
    """Detectron2's network and ours from one config, built from one seed."""
    cfg = tiny_detector_cfg(kind, 3, *(PUBLISHED_WIDTH if kind == "c4" else ()), *overrides)
    networks = []
    for config in (cfg, as_distillable(cfg)):
        torch.manual_seed(0)
        networks.append(META_ARCH_REGISTRY.get(config.MODEL.META_ARCHITECTURE)(config))
    return networks


def losses_of(model, batch):
    torch.manual_seed(5)
    with EventStorage():
        return model(copy.deepcopy(batch))


def outputs_of(model, batch):
    torch.manual_seed(5)
    with EventStorage():
        return model.forward_train(batch)[1]


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_same_seed_gives_detectron2s_network_losses_and_detections(kind):
    theirs, ours = pair_of_networks(kind)
    assert type(theirs).__name__ == "GeneralizedRCNN" and type(ours).__name__ == "DistillableRCNN"
    state = theirs.state_dict()
    assert list(state) == list(ours.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    batch = [detection_input((0, 2, 1)), detection_input((), seed=1)]
    expected, found = losses_of(theirs, batch), losses_of(ours, batch)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with torch.no_grad():
        a, b = (m.eval()([detection_input()])[0]["instances"] for m in (theirs, ours))
    assert len(a) > 0 and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    assert torch.equal(a.scores, b.scores)


def test_a_new_layer_after_the_predictor_starts_the_same_too():
    cfg = as_distillable(tiny_detector_cfg())
    torch.manual_seed(0)
    META_ARCH_REGISTRY.get("DistillableRCNN")(cfg)
    after_ours = torch.rand(1)
    torch.manual_seed(0)
    META_ARCH_REGISTRY.get("GeneralizedRCNN")(tiny_detector_cfg())
    assert torch.equal(after_ours, torch.rand(1))


def test_outputs_of_regions_and_anchors_against_loops():
    _, model = pair_of_networks("fpn")
    outputs = outputs_of(model, [detection_input((0, 2, 1)), detection_input((1,), seed=1)])
    regions, anchors = outputs.regions, outputs.anchors
    transform = Box2BoxTransform(weights=model.spec().regions.delta_weights)
    classes, targets = [], []
    for proposals in regions.proposals:
        for i in range(len(proposals)):
            classes.append(int(proposals.gt_classes[i]))
            if classes[-1] < 3:
                box = proposals.proposal_boxes.tensor[i : i + 1]
                targets.append(transform.get_deltas(box, proposals.gt_boxes.tensor[i : i + 1])[0])
    assert regions.targets.classes.tolist() == classes and len(targets) > 4
    torch.testing.assert_close(regions.targets.deltas, torch.stack(targets))
    assert regions.logits.shape == (len(classes), 4)
    assert regions.deltas.shape == (len(classes), 12)
    assert [x.gt_classes.tolist() for x in outputs.annotated] == [[0, 2, 1], [1]]
    truth = detection_input((1,))["instances"].gt_boxes.tensor
    assert torch.equal(outputs.annotated[1].gt_boxes.tensor, truth)
    # A positive anchor moved by its target lies on a box of its image.
    boxes, targets = torch.cat(anchors.boxes), anchors.targets
    rpn = Box2BoxTransform(weights=model.spec().anchors.delta_weights)
    row = 0
    for image, count in enumerate((3, 1)):
        truth = detection_input((0,) * count)["instances"].gt_boxes.tensor
        for index in torch.nonzero(targets.labels[image] == 1)[:, 0]:
            target = targets.deltas[row : row + 1]
            moved = rpn.apply_deltas(target, boxes[index : index + 1])
            assert (moved - truth).abs().max(dim=1).values.min() < 1e-3
            row += 1
    assert row == len(targets.deltas) > 0


def test_a_teacher_predicts_the_students_regions_and_anchors():
    _, model = pair_of_networks("fpn")
    batch = [detection_input()]
    model.eval()
    for part in (model, model.proposal_generator, model.roi_heads):
        part.training = True  # batch statistics stay out: only the branches of training
    outputs = outputs_of(model, batch)
    parts = ANCHOR_PARTS | {Part.FEATURES, Part.REGION_LOGITS, Part.REGION_DELTAS}
    first = model.forward_teacher(batch, parts)
    assert first.regions is None
    teacher = model.forward_regions(first, outputs, parts)
    for name in ("logits", "deltas"):
        for ours, theirs in zip(getattr(outputs.anchors, name), getattr(teacher.anchors, name)):
            torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(outputs.regions.logits, teacher.regions.logits)
    torch.testing.assert_close(outputs.regions.deltas, teacher.regions.deltas)
    assert not teacher.regions.logits.requires_grad
    assert model.forward_teacher(batch, frozenset({Part.FEATURES})).anchors is None
    assert model.forward_regions(first, outputs, ANCHOR_PARTS) is first


@pytest.mark.parametrize(
    "parts", [{Part.FOREGROUND_LOGITS}, {Part.FOREGROUND_LOGITS, Part.REGION_DELTAS}]
)
def test_a_teacher_of_foreground_logits_alone_predicts_no_background_region(parts):
    _, model = pair_of_networks("fpn")
    batch = [detection_input((0, 2, 1)), detection_input((1,), seed=1)]
    student = outputs_of(model, batch)
    regions = student.regions
    foreground = [0 <= c < 3 for c in regions.targets.classes.tolist()]
    model.eval()
    first = model.forward_teacher(batch, frozenset(parts))
    logits = model.forward_regions(first, student, frozenset({Part.REGION_LOGITS})).regions.logits
    predicted = []
    model.roi_heads.box_head.register_forward_hook(lambda *call: predicted.append(len(call[2])))
    found = model.forward_regions(first, student, frozenset(parts)).regions
    torch.testing.assert_close(found.foreground_logits, logits[torch.tensor(foreground)])
    assert predicted == [len(foreground) if Part.REGION_DELTAS in parts else sum(foreground)]
    assert 0 < sum(foreground) < len(foreground)
    assert (found.logits is None) == (parts == {Part.FOREGROUND_LOGITS})


def test_masks_are_trained_as_well():
    model = pair_of_networks("fpn", "MODEL.MASK_ON", True)[1]
    from detectron2.structures import BitMasks

    x = detection_input((0,))
    x["instances"].gt_masks = BitMasks(torch.ones(1, 96, 128, dtype=torch.bool))
    assert losses_of(model, [x])["loss_mask"] > 0


def test_background_weight_multiplies_background_regions_alone():
    _, model = pair_of_networks("fpn")
    regions = outputs_of(model, [detection_input()]).regions
    predictor = copy.deepcopy(model.roi_heads.box_predictor)
    predictions = (regions.logits.detach(), regions.deltas.detach())
    log_probabilities = regions.logits.detach().double().log_softmax(dim=1)
    weighted = 0.0
    for row, target in zip(log_probabilities, regions.targets.classes.tolist()):
        weighted -= row[target] * (2.0 if target == 3 else 1.0)
    with EventStorage():
        plain = predictor.losses(predictions, regions.proposals)
        predictor.background_weight = 2.0
        losses = predictor.losses(predictions, regions.proposals)
    assert float(losses["loss_cls"]) == pytest.approx(float(weighted) / len(log_probabilities))
    assert losses["loss_cls"] > plain["loss_cls"]
    assert torch.equal(losses["loss_box_reg"], plain["loss_box_reg"])


def test_training_on_predicted_boxes_is_refused():
    cfg = tiny_detector_cfg("fpn", 3, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True)
    with pytest.raises(ValueError, match="TRAIN_ON_PRED_BOXES.*set it to False"):
        META_ARCH_REGISTRY.get("DistillableRCNN")(as_distillable(cfg))


def test_spec_is_that_of_the_config():
    spec = build_model(as_distillable(tiny_detector_cfg("fpn", 3))).spec()
    assert spec.features["p4"].stride == 16 and spec.features["p4"].channels == 16
    assert spec.num_classes == 3 and spec.image_format == "BGR"
    assert spec.anchors.strides == [4, 8, 16, 32, 64]
    assert [len(cells) for cells in spec.anchors.cells] == [3] * 5
    assert spec.regions.delta_weights == (10.0, 10.0, 5.0, 5.0) and spec.regions.softmax
    assert spec.anchors.delta_weights == (1.0, 1.0, 1.0, 1.0) and not spec.anchors.dense_classes
    assert spec.identities is None and spec.crops is None
    assert spec.parts == {Part.FEATURES} | ANCHOR_PARTS | REGION_PARTS
