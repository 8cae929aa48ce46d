"""Saliency of re-ID networks: shares that add up, corners that light up, heat over crops."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from saliency_grid import HeatTile, SaliencyRow, draw_saliency, overlay
from saliency_maps import heat, logit_maps, margin_maps, score_maps
from tiny_reid import reid_cfg
from torch import nn
from torch.nn import functional as F  # noqa: N812

from kd_search.modeling.meta_arch import ReIDNetwork

SIZE = (64, 32)
CELL = 8
CORNERS = {"top left": (0, 0), "bottom right": (7, 3)}


class CornerBackbone(nn.Module):
    """Colours of one corner of 8 x 8 pixels, and a large part that is the same everywhere."""

    def __init__(self, corner):
        super().__init__()
        mask = torch.zeros(SIZE[0] // CELL, SIZE[1] // CELL)
        mask[corner] = 1
        self.register_buffer("mask", mask)

    def output_shape(self):
        return {"last": ShapeSpec(channels=4, stride=CELL)}

    def forward(self, images):
        colours = F.avg_pool2d(images, CELL) * self.mask
        return {"last": torch.cat([torch.full_like(colours[:, :1], 9.0), colours], dim=1)}


def corner_network(corner):
    return ReIDNetwork(
        backbone=CornerBackbone(corner),
        feature="last",
        num_ids=3,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(255.0, 255.0, 255.0),
        test_embedding="before",
    ).eval()


def real_network(test_embedding="before"):
    """With statistics in the neck that are not 0 and 1."""
    torch.manual_seed(0)
    cfg = reid_cfg("MODEL.REID_NETWORK.TEST_EMBEDDING", test_embedding)
    cfg.merge_from_list(["MODEL.RESNETS.FINAL_RELU", False])
    network = build_model(cfg).eval()
    with torch.no_grad():
        network.neck.running_mean.normal_()
        network.neck.running_var.uniform_(0.5, 2)
        network.neck.weight.uniform_(0.5, 2)
        network.classifier.weight.normal_()
    return network


def crops(count=3):
    return 255 * torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def unit_means(network, pictures):
    """(1, D) mean of the unit embeddings of crops."""
    with torch.no_grad():
        return F.normalize(network.embed(pictures[:, None]), dim=1).mean(dim=0, keepdim=True)


@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS)
@pytest.mark.parametrize("score", ["margin", "logit"])
def test_corner_that_a_network_depends_on_lights_up(corner, score):
    network = corner_network(corner)
    red, blue = crops(1), crops(1)
    y, x = (index * CELL for index in corner)
    for picture, channel in ((red, 0), (blue, 2)):
        picture[:, :, y : y + CELL, x : x + CELL] = 0
        picture[:, channel, y : y + CELL, x : x + CELL] = 255
    if score == "margin":
        maps, _ = margin_maps(network, red, unit_means(network, red), unit_means(network, blue))
    else:
        with torch.no_grad():
            # Of the part that all places share, this classifier makes nothing.
            network.classifier.weight.copy_(torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1], [0] * 4]))
        maps, _ = logit_maps(network, red)
    (found,) = heat(maps, SIZE)
    assert divmod(int(maps[0].argmax()), maps.shape[2]) == corner
    lit = torch.zeros(SIZE)
    # Bilinear heat of a cell reaches one cell further.
    lit[max(y - CELL, 0) : y + 2 * CELL, max(x - CELL, 0) : x + 2 * CELL] = 1
    assert found[lit == 0].max() < 0.1 * found[y : y + CELL, x : x + CELL].mean()


@pytest.mark.parametrize("embedding", ["before", "after"])
def test_maps_are_the_shares_by_hand(embedding):
    network, pictures = real_network(embedding), crops()
    own, others = torch.randn(2, 3, 128)
    maps, margins = margin_maps(network, pictures, own, others)
    with torch.no_grad():
        features = network.feature_maps(pictures).double()
        pooled = features.mean(dim=(2, 3))
        neck = network.neck
        scale = (neck.weight / (neck.running_var + neck.eps).sqrt()).double()
        normal = (pooled - neck.running_mean) * scale
        embeddings, slope = (pooled, torch.ones(128)) if embedding == "before" else (normal, scale)
    for i in range(3):
        direction = (own[i] - others[i]).double()
        length = embeddings[i].norm()
        expected = torch.zeros(4, 2, dtype=torch.float64)
        for y in range(4):
            for x in range(2):
                expected[y, x] = sum(features[i, :, y, x] * direction * slope) / length
        torch.testing.assert_close(maps[i].double(), expected, rtol=1e-4, atol=1e-5)
        margin = embeddings[i] @ direction / length
        torch.testing.assert_close(margins[i].double(), margin, rtol=1e-4, atol=1e-5)
        if embedding == "before":
            torch.testing.assert_close(maps[i].mean(), margins[i], rtol=1e-4, atol=1e-5)


def test_maps_of_the_greatest_logit_by_hand():
    network, pictures = real_network(), crops()
    maps, logits = logit_maps(network, pictures)
    with torch.no_grad():
        features = network.feature_maps(pictures).double()
        every = network.classify(features.mean(dim=(2, 3)).float())[1]
        scale = (
            network.neck.weight / (network.neck.running_var + network.neck.eps).sqrt()
        ).double()
        weights = network.classifier.weight[every.argmax(dim=1)].double() * scale
        expected = (weights[:, :, None, None] * features).sum(dim=1)
    torch.testing.assert_close(logits, every.amax(dim=1))
    torch.testing.assert_close(maps.double(), expected, rtol=1e-4, atol=1e-4)


def test_margin_is_mean_cosine_to_own_less_that_to_others():
    network, pictures = real_network(), crops(6)
    own, others = pictures[1:3], pictures[3:]
    _, (margin,) = margin_maps(
        network, pictures[:1], unit_means(network, own), unit_means(network, others)
    )
    with torch.no_grad():
        e = network.embed(pictures[:, None]).double()
    cosines = F.cosine_similarity(e[:1], e)
    expected = cosines[1:3].mean() - cosines[3:].mean()
    torch.testing.assert_close(margin.double(), expected, rtol=1e-4, atol=1e-6)


def test_networks_are_left_as_they_were():
    network = real_network()
    with torch.no_grad():
        logit_maps(network, crops())
    assert all(p.grad is None for p in network.parameters())
    with pytest.raises(ValueError, match="eval"):
        score_maps(network.train(), crops(), lambda e, logits: logits[:, 0])


def test_heat_keeps_what_speaks_for_the_score():
    maps = torch.tensor([[[4.0, -8.0], [0.0, 2.0]], [[-1.0, -2.0], [-3.0, 0.0]]])
    found = heat(maps, (4, 4))
    assert found.shape == (2, 4, 4) and found.max() == 1 and found.min() == 0
    assert (found[1] == 0).all()
    corners = [found[0, y, x].item() for y in (0, 3) for x in (0, 3)]
    assert corners == [1.0, 0.0, 0.0, 0.5]


def test_heat_colours_grey_crops():
    crop = np.full((6, 4, 3), (250, 10, 90), dtype=np.uint8)
    warm = np.zeros((6, 4))
    warm[0, 0] = 1
    shown = overlay(crop, warm)
    (grey,) = np.unique(shown[1:].reshape(-1, 3), axis=0)
    assert len(set(grey)) == 1
    assert shown[0, 0, 0] > shown[0, 0, 2] and (shown[0, 0] != grey).any()
    with pytest.raises(ValueError, match="crop"):
        overlay(crop, warm[:3])


def test_grid_has_a_row_for_each_person_and_a_column_for_each_network():
    rng = np.random.default_rng(0)

    def row(size):
        crop = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        # Networks may see crops of several sizes.
        tiles = [HeatTile(rng.random(s), "margin 0.123") for s in (size, (48, 24))]
        return SaliencyRow(crop, "id 7, camera 2", tiles)

    rows = [row((64, 32)), row((64, 32))]
    one = draw_saliency(rows[:1], ["teacher", "student"], "Title", tile_height=96)
    two = draw_saliency(rows, ["teacher", "student"], "Title", tile_height=96)
    assert one.dtype == np.uint8 and one.shape[1] == two.shape[1]
    step = two.shape[0] - one.shape[0]
    assert 96 < step < 130
    assert (two[: one.shape[0] - step] == one[: one.shape[0] - step]).all()
    noted = draw_saliency(rows, ["teacher", "student"], "Title", note="word " * 50, tile_height=96)
    assert noted.shape[0] > two.shape[0] and noted.shape[1] == two.shape[1]
    with pytest.raises(ValueError, match="lacks the tile"):
        draw_saliency(rows, ["teacher"], "Title")
