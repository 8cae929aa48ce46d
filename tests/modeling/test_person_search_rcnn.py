"""PersonSearchRCNN, FPN and C4: losses, detections, embeddings of given boxes."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from tiny import NUM_IDS, SIZE, picture, tiny_cfg, training_input

import kd_search.modeling  # noqa: F401  registers
from kd_search.outputs import (
    ANCHOR_PARTS,
    CROP_PARTS,
    IDENTITY_PARTS,
    REGION_PARTS,
    Crops,
    IdentitySpec,
    ModelOutputs,
    Part,
)

KINDS = ("fpn", "c4")


def forward_train(model, batch):
    with EventStorage():
        return model.forward_train(batch)


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return build_model(tiny_cfg(request.param))


def test_training_returns_every_loss_and_every_parameter_gets_a_gradient(model):
    losses, _ = forward_train(model, [training_input(), training_input((1,), seed=1)])
    assert set(losses) == {
        "loss_rpn_cls",
        "loss_rpn_loc",
        "loss_cls",
        "loss_box_reg",
        "loss_oim",
    }
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_an_image_without_people_trains(model):
    losses, outputs = forward_train(model, [training_input(())])
    assert losses["loss_oim"] == 0
    assert outputs.identities.embeddings.shape == (0, 8)
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(torch.isfinite(b).all() for b in model.buffers())


def test_unlabelled_people_alone_give_no_oim_loss_and_no_nan(model):
    losses, outputs = forward_train(model, [training_input((-1, -1))])
    assert losses["loss_oim"] == 0
    person_ids = outputs.identities.person_ids
    assert (person_ids == -1).all() and len(person_ids) > 0


def test_outputs_line_up_with_the_sampled_regions(model):
    _, outputs = forward_train(model, [training_input(), training_input((1,), seed=1)])
    regions, identities, anchors = outputs.regions, outputs.identities, outputs.anchors
    count = sum(len(p) for p in regions.proposals)
    assert regions.logits.shape == (count, 2) and regions.deltas.shape == (count, 4)
    expected = torch.cat([p.gt_person_ids[p.gt_classes == 0] for p in regions.proposals])
    assert torch.equal(identities.person_ids, expected)
    assert {0, -1, 3, 1} == set(expected.tolist())
    norms = identities.embeddings.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert identities.logits.shape == (len(expected), NUM_IDS)
    torch.testing.assert_close(
        identities.logits,
        identities.embeddings @ model.id_table.rows.t() / model.id_table.temperature,
    )
    assert [x.gt_person_ids.tolist() for x in outputs.annotated] == [[0, -1, 3], [1]]
    sizes = [len(boxes) for boxes in anchors.boxes]
    assert anchors.targets.labels.shape == (2, sum(sizes))
    assert [x.shape for x in anchors.logits] == [(2, size) for size in sizes]
    assert [x.shape for x in anchors.deltas] == [(2, size, 4) for size in sizes]


def test_detections_carry_unit_embeddings_and_original_coordinates(model):
    model.eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    height, width = SIZE
    with torch.no_grad():
        small = model([{"image": picture(), "height": height, "width": width}])[0]["instances"]
        large = model([{"image": picture(), "height": 2 * height, "width": 2 * width}])[0]
    assert len(small) > 0
    norms = small.pred_embeddings.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    torch.testing.assert_close(
        large["instances"].pred_boxes.tensor, 2 * small.pred_boxes.tensor, rtol=1e-4, atol=1e-3
    )


def test_no_detection_gives_empty_embeddings(model):
    model.eval()
    model.roi_heads.box_predictor.test_score_thresh = 1.1
    with torch.no_grad():
        found = model([{"image": picture()}])[0]["instances"]
    assert len(found) == 0 and found.pred_embeddings.shape == (0, 8)


def test_query_embeddings_equal_embed_and_given_gallery_boxes_replace_detection(model):
    model.eval()
    boxes = torch.tensor([[5.0, 10.0, 28.0, 80.0], [40.0, 12.0, 60.0, 90.0]])
    x = {"image": picture(), "query_boxes": boxes[:1], "gallery_boxes": boxes}
    with torch.no_grad():
        output = model([x])[0]
        expected = model.embed([x], [boxes])
    torch.testing.assert_close(output["query_embeddings"], expected[:1])
    torch.testing.assert_close(output["instances"].pred_embeddings, expected)
    assert torch.equal(output["instances"].pred_boxes.tensor, boxes)
    assert (output["instances"].scores == 1).all()


def test_embeddings_do_not_depend_on_the_rest_of_the_batch(model):
    model.eval()
    boxes = [torch.tensor([[5.0, 10.0, 28.0, 80.0]]), torch.tensor([[40.0, 12.0, 60.0, 90.0]])]
    inputs = [{"image": picture(0)}, {"image": picture(1)}]
    with torch.no_grad():
        together = model.embed(inputs, boxes)
        apart = torch.cat([model.embed([x], [b]) for x, b in zip(inputs, boxes)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_a_teacher_predicts_the_students_regions(model):
    torch.manual_seed(1)
    teacher = build_model(tiny_cfg("fpn")).eval()
    batch = [training_input(), training_input((1,), seed=1)]
    _, student = forward_train(model, batch)
    parts = IDENTITY_PARTS | {Part.REGION_LOGITS, Part.ANCHOR_LOGITS}
    first = teacher.forward_teacher(batch, parts)
    outputs = teacher.forward_regions(first, student, parts)
    assert first.regions is None and first.identities is None
    identities = outputs.identities
    assert outputs.regions.logits.shape == student.regions.logits.shape
    assert identities.embeddings.shape == student.identities.embeddings.shape
    assert torch.equal(identities.person_ids, student.identities.person_ids)
    assert identities.logits.shape == (len(student.identities.person_ids), NUM_IDS)
    assert not identities.embeddings.requires_grad
    proposals = student.regions.proposals
    foreground = [p.proposal_boxes[p.gt_classes == 0].tensor for p in proposals]
    torch.testing.assert_close(identities.embeddings, teacher.embed(batch, foreground))
    boxes = [Boxes(p.proposal_boxes.tensor) for p in proposals]
    logits, _ = teacher.roi_heads.predict_boxes(first.features, boxes)
    torch.testing.assert_close(outputs.regions.logits, logits)
    embedded = teacher.forward_regions(first, student, frozenset({Part.EMBEDDINGS}))
    assert embedded.regions is None and embedded.identities.logits is None


def test_crops_are_embedded_as_given_boxes(model):
    model.eval()
    batch = [training_input(), training_input((1,), seed=1)]
    boxes = [x["instances"].gt_boxes.tensor for x in batch]
    crops = Crops(boxes, torch.tensor([0, -1, 3, 1]), torch.zeros(4, dtype=torch.bool))
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(batch).tensor)
        found = model.embed_crops(ModelOutputs(features=features), crops)
        expected = model.embed(batch, boxes)
    assert found.crops is crops
    torch.testing.assert_close(found.embeddings, expected)
    rows = model.id_table.rows
    torch.testing.assert_close(found.logits, expected @ rows.t() / model.id_table.temperature)


def test_spec_has_identities_of_regions_and_crops(model):
    spec = model.spec()
    parts = {Part.FEATURES} | ANCHOR_PARTS | REGION_PARTS | IDENTITY_PARTS | CROP_PARTS
    assert spec.parts == parts and spec.num_classes == 1
    assert spec.identities == spec.crops == IdentitySpec(embedding_dim=8, num_identities=NUM_IDS)


def test_ground_truth_without_identities_is_refused(model):
    batch = [training_input()]
    batch[0]["instances"].remove("gt_person_ids")
    with pytest.raises(ValueError, match="PersonSearchDatasetMapper"):
        forward_train(model, batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_every_depth_builds(kind, depth):
    overrides = ["MODEL.RESNETS.DEPTH", depth]
    if depth >= 50:
        overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    model = build_model(tiny_cfg(kind, *overrides)).eval()
    with torch.no_grad():
        embedding = model.embed([{"image": picture()}], [torch.tensor([[5.0, 10.0, 28.0, 80.0]])])
    assert embedding.shape == (1, 8)


def test_half_width_has_a_quarter_of_the_backbone():
    full = build_model(tiny_cfg("fpn", "MODEL.RESNETS.WIDTH_MULTIPLIER", 1.0)).backbone.bottom_up
    half = build_model(tiny_cfg("fpn", "MODEL.RESNETS.WIDTH_MULTIPLIER", 0.5)).backbone.bottom_up
    ratio = sum(p.numel() for p in half.parameters()) / sum(p.numel() for p in full.parameters())
    assert 0.24 < ratio < 0.26


def test_full_width_takes_the_names_and_shapes_of_detectron2s_resnet():
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    from kd_search.modeling import build_width_resnet_backbone

    for depth, channels in ((18, 64), (50, 256)):
        cfg = tiny_cfg(
            "fpn",
            *("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", channels),
            *("MODEL.RESNETS.WIDTH_MULTIPLIER", 1.0),
        )
        ours = build_width_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()
        theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_annotated_boxes_are_embedded_beside_detection():
    model = build_model(tiny_cfg("fpn")).eval()
    boxes = torch.tensor([[5.0, 10.0, 28.0, 80.0], [35.0, 10.0, 58.0, 80.0]])
    x = {"image": picture(), "height": 192, "width": 256}
    with torch.no_grad():
        plain = model([x])[0]
        both = model([{**x, "annotated_boxes": boxes}])[0]
        alone = model([{**x, "gallery_boxes": boxes}])[0]["instances"]
    assert "gt_instances" not in plain
    assert torch.equal(plain["instances"].scores, both["instances"].scores)
    given = both["gt_instances"]
    assert torch.equal(given.pred_boxes.tensor, boxes * 2)
    assert torch.equal(given.pred_embeddings, alone.pred_embeddings)
