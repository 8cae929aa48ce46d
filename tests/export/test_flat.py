"""The forward with fixed shapes gives what Detectron2's gives."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes

from kd_search.export.flat import FlatPersonSearch, decoded, finite, level_of, suppressed
from kd_search.export.tracing import exportable

QUERIES = torch.tensor([[0.0, 0, 64, 33], [10.2, 5.1, 30.7, 31.9], [3, 3, 4, 4]])


def padded(image, divisor, value=77):
    height, width = image.shape[1:]
    shape = (3, -(-height // divisor) * divisor, -(-width // divisor) * divisor)
    whole = torch.full(shape, value, dtype=torch.uint8)
    whole[:, :height, :width] = image
    return whole, torch.tensor([height, width])


@pytest.fixture
def flat(network):
    return FlatPersonSearch(exportable(network.model).model).eval()


def test_people_and_queries_are_those_of_the_network(network, flat):
    counts = []
    for image in network.images:
        with torch.no_grad():
            people = network.model([{"image": image}])[0]["instances"]
            queries = network.model.embed([{"image": image}], [QUERIES])
            whole, size = padded(image, flat.size_divisibility)
            boxes, scores, embeddings, valid, found = flat(whole, size, QUERIES)
        count = len(people)
        counts.append(count)
        assert valid.tolist() == [True] * count + [False] * (len(valid) - count)
        # People of equal scores may be in another order.
        torch.testing.assert_close(scores[valid], people.scores, rtol=0, atol=1e-6)
        order = sorted(range(count), key=lambda i: boxes[i].tolist())
        theirs = sorted(range(count), key=lambda i: people.pred_boxes.tensor[i].tolist())
        torch.testing.assert_close(
            boxes[order], people.pred_boxes.tensor[theirs], rtol=0, atol=1e-4
        )
        torch.testing.assert_close(
            embeddings[order], people.pred_embeddings[theirs], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(found, queries, rtol=0, atol=1e-5)
        assert not boxes[~valid].any() and not scores[~valid].any() and not embeddings[~valid].any()
    assert 0 in counts and max(counts) >= 3


def test_the_padding_may_have_any_value(fpn):
    flat = FlatPersonSearch(exportable(fpn.model).model).eval()
    answers = []
    for value in (0, 255):
        whole, size = padded(fpn.images[1], 32, value)
        with torch.no_grad():
            answers.append(flat(whole, size, QUERIES))
    for first, second in zip(*answers):
        assert torch.equal(first, second)


def test_no_query(fpn):
    flat = FlatPersonSearch(exportable(fpn.model).model).eval()
    with torch.no_grad():
        found = flat(*padded(fpn.images[1], 32), torch.zeros((0, 4)))[4]
    assert found.shape == (0, 8)


def test_boxes_go_to_the_levels_of_detectron2(fpn):
    pooler = fpn.model.roi_heads.box_pooler
    generator = torch.Generator().manual_seed(0)
    sides = torch.rand((500, 2), generator=generator) * 1500
    # Powers of two lie exactly on the border of two levels.
    border = torch.tensor([[s, s] for s in (1.0, 28, 56, 112, 224, 448, 896, 1792)])
    sides = torch.cat([sides, border, torch.zeros((1, 2))])
    boxes = torch.cat([torch.zeros_like(sides), sides], dim=1)
    theirs = assign_boxes_to_levels(
        [Boxes(boxes)],
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
    assert torch.equal(level_of(pooler, boxes), theirs)
    assert set(theirs.tolist()) == {0, 1, 2, 3}


def test_rows_that_hold_nothing_suppress_nobody():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.5], [0, 0, 10, 9.5], [50, 50, 60, 60]])
    nothing = -float("inf")
    _, scores = suppressed(boxes, torch.tensor([nothing, 0.8, 0.9, 0.7]), 0.5)
    assert scores.tolist() == [nothing, nothing, pytest.approx(0.9), pytest.approx(0.7)]


def test_boxes_are_moved_as_by_detectron2():
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    generator = torch.Generator().manual_seed(0)
    low, size = torch.rand((2, 200, 2), generator=generator) * 100
    boxes = torch.cat([low, low + size], dim=1)
    # Some of them beyond the limit of the growth.
    deltas = torch.randn((200, 4), generator=generator) * 20
    theirs = transform.apply_deltas(deltas, boxes)
    assert (deltas[:, 2:] / 5 > transform.scale_clamp).any()
    torch.testing.assert_close(decoded(transform, deltas, boxes), theirs, rtol=1e-6, atol=1e-4)


def test_what_is_not_finite_is_found():
    wrong = torch.tensor([float("nan"), float("inf"), -float("inf")])
    boxes, scores = torch.full((16, 4), -3e38), torch.full((16,), -0.0)
    for index, value in enumerate(wrong):
        scores[index] = value
        for column in range(4):
            boxes[3 + 4 * index + column, column] = value
    assert finite(boxes, scores).tolist() == [False] * 15 + [True]


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("proposal_generator", "MODEL.PROPOSAL_GENERATOR.NAME"),
        ("roi_heads", "MODEL.ROI_HEADS.NAME"),
    ],
)
def test_an_unknown_part_is_named(fpn, part, key):
    model = exportable(fpn.model).model
    setattr(model, part, torch.nn.Identity())
    with pytest.raises(ValueError, match=rf"{key} Identity .*torchscript"):
        FlatPersonSearch(model)


def test_several_classes_are_refused(fpn):
    model = exportable(fpn.model).model
    model.roi_heads.num_classes = 3
    with pytest.raises(ValueError, match=r"NUM_CLASSES 3"):
        FlatPersonSearch(model)


def test_swin_version_2_of_timm_is_refused(fpn):
    swin = pytest.importorskip("timm.models.swin_transformer_v2")
    model = exportable(fpn.model).model
    model.backbone.merging = swin.PatchMerging(8)
    with pytest.raises(ValueError, match=r"MODEL\.TORCHVISION\.NAME: .*timm.*swin_v2_t"):
        FlatPersonSearch(model)
