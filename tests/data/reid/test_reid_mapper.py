import numpy as np
import pytest
import torch
from PIL import Image

from kd_search.data import ImageError
from kd_search.data.reid import CropMapper
from kd_search.data.sampling.order import seeded

#: Nothing random.
PLAIN = {"flip_prob": 0.0, "pad": 0, "erasing_prob": 0.0}


@pytest.fixture
def scene(tmp_path):
    """A 60x50 image with a red pixel block at x 20..23, y 10..13."""
    pixels = np.random.default_rng(0).integers(0, 120, (50, 60, 3), np.uint8)
    pixels[10:14, 20:24] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png"), pixels


def _mapper(**settings):
    return CropMapper(is_train=True, image_format="RGB", **{"size": (50, 60), **settings})


def _channels_last(pixels):
    return pixels.permute(1, 2, 0).numpy()


def test_a_crop_of_its_own_size_is_left_as_it_is(scene):
    path, pixels = scene
    for mapper in (_mapper(**PLAIN), CropMapper(False, size=(50, 60), image_format="RGB")):
        crop = mapper(path)
        assert crop.dtype == torch.uint8 and np.array_equal(_channels_last(crop), pixels)
    assert np.array_equal(_channels_last(CropMapper(False, size=(50, 60))(path)), pixels[..., ::-1])


def test_resizing_is_bicubic_and_boxes_may_end_within_pixels(scene):
    path, pixels = scene
    mapper = CropMapper(False, size=(16, 8), image_format="RGB")
    box = (10.25, 5.5, 30.75, 47.0)
    whole = Image.fromarray(pixels[5:47, 10:31])
    expected = whole.resize((8, 16), Image.Resampling.BICUBIC, box=(0.25, 0.5, 20.75, 42.0))
    assert np.array_equal(_channels_last(mapper(path, box)), np.asarray(expected))
    shifted = mapper(path, (10.75, 5.5, 31.25, 47.0))
    assert not np.array_equal(shifted.numpy(), mapper(path, box).numpy())


def test_boxes_are_clipped_and_those_outside_are_named(scene):
    path, pixels = scene
    mapper = CropMapper(False, size=(10, 10), image_format="RGB")
    assert np.array_equal(_channels_last(mapper(path, (-5, -5, 10, 10))), pixels[:10, :10])
    with pytest.raises(ImageError, match=r"scene.png: .*\[60, 0, 70, 10\]"):
        mapper(path, [60, 0, 70, 10])
    with pytest.raises(ImageError, match="gone.png"):
        mapper("gone.png")


def test_the_marker_is_where_mirroring_puts_it(scene):
    path, pixels = scene
    crop = _channels_last(_mapper(**{**PLAIN, "flip_prob": 1.0})(path, (10, 0, 40, 50)))
    plain = _channels_last(_mapper(**PLAIN)(path, (10, 0, 40, 50)))
    assert np.array_equal(crop, plain[:, ::-1])
    # x 20..23 of the box 10..40 at twice the width: 20..27 from the left, from the right here.
    red = (crop[..., 0] > 200) & (crop[..., 1] < 60)
    assert 60 - 28 - 1 <= np.flatnonzero(red.any(0)).min()
    assert np.flatnonzero(red.any(0)).max() <= 60 - 20 + 1


def test_padding_moves_the_crop_by_up_to_its_width_and_shows_black(scene):
    path, pixels = scene
    mapper = _mapper(**{**PLAIN, "pad": 4})
    shifts = set()
    for seed in range(120):
        with seeded(seed):
            crop = _channels_last(mapper(path))
        assert crop.shape == (50, 60, 3)
        padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
        places = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if np.array_equal(crop, padded[y : y + 50, x : x + 60])
        ]
        assert len(places) == 1
        shifts.add(places[0])
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(9))


def test_erasing_paints_one_rectangle_in_the_given_colour(scene):
    path, pixels = scene
    settings = {"erasing_prob": 1.0, "erasing_scale": (0.1, 0.3), "erasing_ratio": (0.5, 2.0)}
    mapper = _mapper(**{**PLAIN, **settings}, erasing_fill=(123.7, 116.3, 103.5))
    areas, ratios = [], []
    for seed in range(60):
        with seeded(seed):
            crop = _channels_last(mapper(path))
        changed = (crop == (124, 116, 104)).all(-1)
        ys, xs = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        height, width = len(ys), len(xs)
        assert changed.sum() == height * width
        assert np.array_equal(crop[~changed], pixels[~changed])
        areas.append(height * width / 3000)
        ratios.append(height / width)
    assert 0.08 < min(areas) < 0.14 and 0.26 < max(areas) < 0.32
    assert 0.45 < min(ratios) < 0.8 and 1.2 < max(ratios) < 2.2


def test_probabilities_are_those_asked_for(scene):
    path, pixels = scene
    mapper = _mapper(**{**PLAIN, "flip_prob": 0.25})
    mirrored = 0
    for seed in range(200):
        with seeded(seed):
            mirrored += np.array_equal(_channels_last(mapper(path)), pixels[:, ::-1])
    assert 30 <= mirrored <= 70
    test_mapper = CropMapper(False, size=(50, 60), image_format="RGB", flip_prob=1.0)
    assert np.array_equal(_channels_last(test_mapper(path)), pixels)


def test_a_crop_follows_from_the_seed_around_it(scene):
    path, _ = scene
    mapper = _mapper(erasing_prob=0.5)
    crops = []
    for seed in (1, 2, 1):
        with seeded(seed):
            crops.append(mapper(path))
    assert torch.equal(crops[0], crops[2]) and not torch.equal(crops[0], crops[1])


def test_shifted_boxes_move_over_the_image_instead_of_black(scene):
    path, pixels = scene
    box = (20.0, 10.0, 40.0, 40.0)
    # dp 3 of 60 x 40 on a box of 30 x 20: up to 3 of 6 * 30 / 60 pixels in total, as in x.
    mapper = _mapper(**{**PLAIN, "pad": 30}, size=(60, 40), shift=(3.0, 100.0))
    seen_x, seen_y = [], []
    for seed in range(80):
        with seeded(seed):
            red = (_channels_last(mapper(path, box)) > (200, -1, -1)).all(-1)
        ys, xs = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        assert len(xs)
        # Ends of the marker, 24 and 14, in pixels of the image.
        seen_x.append(24 - (xs[-1] + 1) / 2 - 20)
        seen_y.append(14 - (ys[-1] + 1) / 2 - 10)
    for seen in (seen_x, seen_y):
        assert min(seen) >= -1.5 - 0.6 and max(seen) <= 1.5 + 0.6
        assert min(seen) < -0.7 and max(seen) > 0.7
    capped = _mapper(**PLAIN, size=(60, 40), shift=(3.0, 0.0))
    plain = _mapper(**PLAIN, size=(60, 40))
    assert torch.equal(capped(path, box), plain(path, box))


def test_ready_crops_are_padded_even_where_boxes_are_shifted(scene):
    path, pixels = scene
    mapper = _mapper(**{**PLAIN, "pad": 4}, shift=(3.0, 20.0))
    with seeded(3):
        crop = mapper(path)
    assert not np.array_equal(_channels_last(crop), pixels)


def test_the_config_is_read(data_cfg, scene):
    cfg = data_cfg("REID_DATA.SIZE", [50, 60], "REID_DATA.FLIP_PROB", 1.0, "INPUT.FORMAT", "RGB")
    cfg.merge_from_list(["REID_DATA.PAD", 0, "REID_DATA.ERASING_PROB", 0.0])
    path, pixels = scene
    assert np.array_equal(_channels_last(CropMapper(cfg, True)(path)), pixels[:, ::-1])
    assert CropMapper(cfg, True).shift is None
    cfg.REID_DATA.SIA.IMAGE_LEVEL = True
    assert CropMapper(cfg, True).shift == (10.0, 20.0) and CropMapper(cfg, False).shift is None
    cfg.REID_DATA.SIZE = [128]
    with pytest.raises(ValueError, match=r"REID_DATA.SIZE \[128\]"):
        CropMapper(cfg, True)
