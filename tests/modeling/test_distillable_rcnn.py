"""The distillable Faster R-CNN is Detectron2's, and says truthfully what it knows."""

import copy

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage
from tiny import detection_input, tiny_detector_cfg

from kd_search.modeling import as_distillable

# Detectron2's C4 heads know no other width than the published one.
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


def knowledge_of(model, batch):
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


def test_knowledge_of_regions_and_anchors_against_loops():
    _, model = pair_of_networks("fpn")
    known = knowledge_of(model, [detection_input((0, 2, 1)), detection_input((1,), seed=1)])
    transform = Box2BoxTransform(weights=model.layout().region_delta_weights)
    classes, targets = [], []
    for proposals in known.proposals:
        for i in range(len(proposals)):
            classes.append(int(proposals.gt_classes[i]))
            if classes[-1] < 3:
                box = proposals.proposal_boxes.tensor[i : i + 1]
                targets.append(transform.get_deltas(box, proposals.gt_boxes.tensor[i : i + 1])[0])
    assert known.region_classes.tolist() == classes and len(targets) > 4
    torch.testing.assert_close(known.region_delta_targets, torch.stack(targets))
    assert known.region_logits.shape == (len(classes), 4)
    assert known.region_deltas.shape == (len(classes), 12)
    assert [x.gt_classes.tolist() for x in known.annotated] == [[0, 2, 1], [1]]
    truth = detection_input((1,))["instances"].gt_boxes.tensor
    assert torch.equal(known.annotated[1].gt_boxes.tensor, truth)
    # A positive anchor moved by its target lies on a box of its image.
    anchors = torch.cat(known.anchors)
    rpn = Box2BoxTransform(weights=model.layout().anchor_delta_weights)
    row = 0
    for image, count in enumerate((3, 1)):
        truth = detection_input((0,) * count)["instances"].gt_boxes.tensor
        for index in torch.nonzero(known.anchor_labels[image] == 1)[:, 0]:
            target = known.anchor_delta_targets[row : row + 1]
            moved = rpn.apply_deltas(target, anchors[index : index + 1])
            assert (moved - truth).abs().max(dim=1).values.min() < 1e-3
            row += 1
    assert row == len(known.anchor_delta_targets) > 0


def test_teacher_judges_the_students_regions_and_anchors():
    _, model = pair_of_networks("fpn")
    batch = [detection_input()]
    model.eval()
    for part in (model, model.proposal_generator, model.roi_heads):
        part.training = True  # batch statistics stay out: only the branches of training
    known = knowledge_of(model, batch)
    fields = {"features", "anchor_logits", "region_logits", "region_deltas"}
    observed = model.observe(batch, fields)
    model.judge_regions(observed, known, fields)
    for ours, theirs in zip(known.anchor_logits, observed.anchor_logits):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(known.anchor_deltas, observed.anchor_deltas):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(known.region_logits, observed.region_logits)
    torch.testing.assert_close(known.region_deltas, observed.region_deltas)
    assert not observed.region_logits.requires_grad
    assert model.observe(batch, {"features"}).anchor_logits is None


@pytest.mark.parametrize("fields", [{"foreground_logits"}, {"foreground_logits", "region_deltas"}])
def test_teacher_asked_about_foreground_regions_alone_judges_no_other(fields):
    _, model = pair_of_networks("fpn")
    batch = [detection_input((0, 2, 1)), detection_input((1,), seed=1)]
    known = knowledge_of(model, batch)
    classes = known.region_classes.tolist()
    foreground = [0 <= c < 3 for c in classes]
    assert known.foreground().tolist() == foreground and 0 < sum(foreground) < len(classes)
    corners = torch.cat([boxes.tensor for boxes in known.foreground_boxes()])
    everything = torch.cat([p.proposal_boxes.tensor for p in known.proposals])
    assert torch.equal(corners, everything[torch.tensor(foreground)])
    assert [len(boxes) for boxes in known.foreground_boxes()] == [
        sum(0 <= c < 3 for c in p.gt_classes.tolist()) for p in known.proposals
    ]
    model.eval()
    everyone, observed = (model.observe(batch, fields) for _ in range(2))
    model.judge_regions(everyone, known, {"region_logits"})
    judged = []
    model.roi_heads.box_head.register_forward_hook(lambda *call: judged.append(len(call[2])))
    model.judge_regions(observed, known, fields)
    torch.testing.assert_close(
        observed.foreground_logits, everyone.region_logits[torch.tensor(foreground)]
    )
    assert judged == [len(classes) if "region_deltas" in fields else sum(foreground)]
    assert (observed.region_logits is None) == (fields == {"foreground_logits"})


def test_masks_are_trained_as_well():
    model = pair_of_networks("fpn", "MODEL.MASK_ON", True)[1]
    from detectron2.structures import BitMasks

    x = detection_input((0,))
    x["instances"].gt_masks = BitMasks(torch.ones(1, 96, 128, dtype=torch.bool))
    assert losses_of(model, [x])["loss_mask"] > 0


def test_background_weight_multiplies_background_regions_alone():
    _, model = pair_of_networks("fpn")
    known = knowledge_of(model, [detection_input()])
    predictor = copy.deepcopy(model.roi_heads.box_predictor)
    predictions = (known.region_logits.detach(), known.region_deltas.detach())
    log_probabilities = known.region_logits.detach().double().log_softmax(dim=1)
    weighted = 0.0
    for row, target in zip(log_probabilities, known.region_classes.tolist()):
        weighted -= row[target] * (2.0 if target == 3 else 1.0)
    with EventStorage():
        plain = predictor.losses(predictions, known.proposals)
        predictor.background_weight = 2.0
        losses = predictor.losses(predictions, known.proposals)
    assert float(losses["loss_cls"]) == pytest.approx(float(weighted) / len(log_probabilities))
    assert losses["loss_cls"] > plain["loss_cls"]
    assert torch.equal(losses["loss_box_reg"], plain["loss_box_reg"])


def test_training_on_predicted_boxes_is_refused():
    cfg = tiny_detector_cfg("fpn", 3, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True)
    with pytest.raises(ValueError, match="TRAIN_ON_PRED_BOXES.*set it to False"):
        META_ARCH_REGISTRY.get("DistillableRCNN")(as_distillable(cfg))


def test_layout_is_that_of_the_config():
    layout = build_model(as_distillable(tiny_detector_cfg("fpn", 3))).layout()
    assert layout.features["p4"].stride == 16 and layout.features["p4"].channels == 16
    assert layout.num_classes == 3 and layout.image_format == "BGR"
    assert layout.anchor_strides == [4, 8, 16, 32, 64]
    assert [len(cells) for cells in layout.anchor_cells] == [3] * 5
    assert layout.region_delta_weights == (10.0, 10.0, 5.0, 5.0)
    assert layout.anchor_delta_weights == (1.0, 1.0, 1.0, 1.0)
