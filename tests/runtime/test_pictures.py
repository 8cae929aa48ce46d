"""Pictures become the inputs that the training stack makes of them."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from tiny import REPO, tiny_cfg
from tiny_reid import reid_cfg

from kd_search.data import PersonSearchDatasetMapper
from kd_search.data.reid.mapper import CropMapper
from kd_search.export.gate_pictures import write_gate_pictures
from kd_search.runtime import ImageError
from kd_search.runtime.pictures import (
    crop_input,
    find_pictures,
    network_input,
    read_picture,
    resized_size,
)


@pytest.mark.parametrize(("min_size", "max_size"), [(800, 1333), (192, 320), (0, 1333), (37, 41)])
def test_sizes_are_those_of_detectron2(min_size, max_size):
    resize = T.ResizeShortestEdge(min_size, max_size)
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (300, 2)).tolist() + [[1, 3000], [600, 600]]:
        transform = resize.get_transform(np.zeros((height, width, 1), np.uint8))
        theirs = (transform.new_h, transform.new_w) if min_size else (height, width)
        assert resized_size(height, width, min_size, max_size) == theirs, (height, width)


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_inputs_are_those_of_the_mapper(tmp_path, channels):
    sizes = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 100, "INPUT.FORMAT", channels)
    cfg = tiny_cfg("fpn", *sizes)
    mapper = PersonSearchDatasetMapper(cfg, is_train=False)
    manifest = {"min_size": 64, "max_size": 100, "size_divisibility": 32}
    pictures = write_gate_pictures(tmp_path, 64)
    assert len(pictures) >= 12
    for picture in pictures:
        theirs = mapper({"file_name": picture.file})["image"].numpy()
        rgb = read_picture(picture.file, 10**7)
        ours, (height, width) = network_input(rgb, {**manifest, "input_format": channels})
        assert ours.shape[1] % 32 == 0 == ours.shape[2] % 32
        assert np.array_equal(ours[:, :height, :width], theirs), picture.file
        assert not ours[:, height:].any() and not ours[:, :, width:].any()


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_crops_are_those_of_the_mapper(tmp_path, channels):
    mapper = CropMapper(reid_cfg("REID_DATA.SIZE", [48, 24], "INPUT.FORMAT", channels), False)
    manifest = {"crop_size": [48, 24], "input_format": channels}
    for picture in write_gate_pictures(tmp_path, 64)[:4]:
        rgb = read_picture(picture.file, 10**7)
        for box in (None, [3.3, 2.6, 20.1, 31.7], [-5, -5, 10, 1000]):
            theirs = mapper(picture.file, box).numpy()
            assert np.array_equal(crop_input(rgb, box, manifest), theirs)
        with pytest.raises(ImageError, match="outside"):
            crop_input(rgb, [-9, -9, -1, -1], manifest)


def test_a_picture_that_would_vanish_is_refused():
    manifest = {"min_size": 8, "max_size": 10, "size_divisibility": 1, "input_format": "RGB"}
    with pytest.raises(ImageError, match="3000 x 1 "):
        network_input(np.zeros((1, 3000, 3), np.uint8), manifest)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
    ids=("gray", "float", "empty"),
)
def test_wrong_arrays_are_refused(pixels):
    with pytest.raises(ImageError):
        read_picture(pixels, 1000)


def test_the_limit_of_pixels(tmp_path):
    with pytest.raises(ImageError, match="max_pixels"):
        read_picture(np.zeros((40, 40, 3), np.uint8), 1000)
    (file,) = (p.file for p in write_gate_pictures(tmp_path, 64) if p.file.endswith("large.jpg"))
    with pytest.raises(ImageError, match=r"large\.jpg: \d+ x \d+ .*max_pixels"):
        read_picture(file, 1000)


def test_folders_are_searched(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_pictures([str(tmp_path)]) == [str(tmp_path / "b.png"), str(tmp_path / "sub/a.JPG")]
    with pytest.raises(ImageError, match="gone"):
        find_pictures([str(tmp_path / "gone")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty.*no pictures"):
        find_pictures([str(tmp_path / "empty")])


def test_the_documented_numbers_of_the_preprocessing():
    y, x = np.mgrid[:4, :6]
    rgb = np.stack([40 * x, 60 * y, 10 * (x + y)], axis=2).astype(np.uint8)
    manifest = {"min_size": 6, "max_size": 100, "size_divisibility": 4, "input_format": "BGR"}
    image, size = network_input(rgb, manifest)
    text = (REPO / "docs/runtime.md").read_text()
    assert f"{' x '.join(map(str, image.shape))} bytes, of which {size[0]} x {size[1]}" in text
    for plane, color in zip(image, ("blue", "green", "red")):
        assert f"    {color:6} {' '.join(map(str, plane[0]))}\n" in text
