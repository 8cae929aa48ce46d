"""The generated multi-class set: the same bytes from a seed, boxes that fit, whole or nothing."""

import dataclasses
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from kd_search.cli import generate as tool
from kd_search.data.detection.objects import OBJECT_CLASSES
from kd_search.data.generated import register_objects
from kd_search.synthetic import OBJECTS_PRESETS, ObjectsConfig, generate_objects
from kd_search.synthetic.canvas import Sprite
from kd_search.synthetic.objects_scene import render_objects
from kd_search.synthetic.objects_shapes import DRAW, draw_object

SMALL = ObjectsConfig(num_train_images=5, num_test_images=3, width=96, height=80, max_size=60)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects") / "set"
    assert generate_objects(folder, SMALL, seed=3, progress=False)
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(root, tmp_path):
    generate_objects(tmp_path / "again", SMALL, seed=3, workers=2, progress=False)
    assert contents(tmp_path / "again") == contents(root)
    generate_objects(tmp_path / "other", SMALL, seed=4, progress=False)
    assert contents(tmp_path / "other") != contents(root)


def test_images_do_not_depend_on_how_many_there_are(root, tmp_path):
    fewer = dataclasses.replace(SMALL, num_train_images=2, num_test_images=1)
    generate_objects(tmp_path / "fewer", fewer, seed=3, progress=False)
    images = {k: v for k, v in contents(tmp_path / "fewer").items() if k.suffix == ".jpg"}
    whole = contents(root)
    assert len(images) == 3 and all(whole[name] == data for name, data in images.items())


def test_the_annotations_are_plain_coco(root):
    for split, number in (("train", 5), ("test", 3)):
        content = json.loads((root / f"{split}.json").read_text())
        assert [c["name"] for c in content["categories"]] == list(OBJECT_CLASSES)
        assert [c["id"] for c in content["categories"]] == list(range(1, 9))
        assert len(content["images"]) == number
        for image in content["images"]:
            with Image.open(root / split / "images" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (96, 80)
        shown = {a["image_id"] for a in content["annotations"]}
        assert shown == {image["id"] for image in content["images"]}
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= 96 and 0 <= y < y + h <= 80 and min(w, h) >= 8
            assert annotation["area"] == w * h and annotation["visible"] >= SMALL.min_visible


@pytest.mark.parametrize("name", OBJECT_CLASSES)
def test_every_class_fills_its_size_and_has_holes_only_where_it_should(name):
    for seed in range(4):
        sprite = draw_object(name, 48, 40, np.random.default_rng(seed))
        solid = sprite.alpha > 0.5
        ys, xs = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        longer = max(xs[-1] - xs[0], ys[-1] - ys[0]) + 1
        assert 0.7 * 48 <= longer <= 1.3 * 48
        # Nothing of it is cut off by the surface it was drawn on.
        assert not solid[0].any() and not solid[-1].any()
        assert not solid[:, 0].any() and not solid[:, -1].any()
    assert set(DRAW) == set(OBJECT_CLASSES)


def test_only_the_wheel_of_the_two_round_things_can_be_looked_through():
    def share(name):
        alpha = draw_object(name, 60, 0, np.random.default_rng(0)).alpha
        ys, xs = np.nonzero(alpha > 0.5)
        cy, cx = (ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2
        y, x = np.mgrid[: alpha.shape[0], : alpha.shape[1]]
        inner = ((x - cx) / np.ptp(xs)) ** 2 + ((y - cy) / np.ptp(ys)) ** 2 < 0.3**2
        return (alpha[inner] > 0.5).mean()

    assert share("button") == 1 and share("wheel") < 0.8


def test_a_thing_alone_has_the_box_of_what_it_changes(monkeypatch):
    config = dataclasses.replace(SMALL, min_objects=1, max_objects=1, clutter=0)
    module = "kd_search.synthetic.objects_scene"
    monkeypatch.setattr(f"{module}.expose", lambda canvas, *_: canvas)
    for seed in range(6):
        scene = render_objects(config, np.random.default_rng(seed))
        with monkeypatch.context() as patch:
            patch.setattr(Sprite, "paste", lambda *_: None)
            empty = render_objects(config, np.random.default_rng(seed)).image
        changed = np.abs(scene.image - empty).sum(2) > 1
        ys, xs = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        (item,) = scene.objects
        found = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)
        # Pixels that it covers by less than half, as at the tip of a fin, are not its own.
        assert np.abs(np.subtract(found, item.box)).max() <= 2


def test_of_two_things_the_nearer_one_hides_the_other():
    config = dataclasses.replace(SMALL, min_objects=6, max_objects=6, overlap=1.0)
    scenes = [render_objects(config, np.random.default_rng(seed)) for seed in range(6)]
    assert all(scene.objects[0].visible >= config.min_visible for scene in scenes)
    visible = [item.visible for scene in scenes for item in scene.objects]
    assert min(visible) >= config.min_visible and min(visible) < 0.75, "some are hidden in part"


def test_what_is_there_is_kept_refused_or_replaced(root, tmp_path):
    assert not generate_objects(root, SMALL, seed=3, progress=False)
    with pytest.raises(ValueError, match="another seed.*--overwrite"):
        generate_objects(root, SMALL, seed=5, progress=False)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "dataset.json").write_text('{"generator_version": 2}')
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="photos .*no generated set of objects"):
            generate_objects(foreign, SMALL, overwrite=overwrite, progress=False)
    assert (foreign / "dataset.json").read_text() == '{"generator_version": 2}'


def test_a_set_that_lost_an_image_is_noticed_and_made_anew(tmp_path):
    folder = tmp_path / "set"
    config = dataclasses.replace(SMALL, num_train_images=1, num_test_images=1)
    generate_objects(folder, config, progress=False)
    before = contents(folder)
    next((folder / "train" / "images").iterdir()).unlink()
    with pytest.raises(ValueError, match="lacks images"):
        generate_objects(folder, config, progress=False)
    assert generate_objects(folder, config, overwrite=True, progress=False)
    assert contents(folder) == before


def test_nothing_is_left_behind_by_an_error(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("kd_search.synthetic.objects_writer.write_coco", fail)
    with pytest.raises(OSError, match="disk full"):
        generate_objects(tmp_path / "set", SMALL, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"num_test_images": 0},
        {"width": 40},
        {"min_objects": 3, "max_objects": 2},
        {"min_size": 50, "max_size": 40},
        {"max_size": 81},
        {"min_visible": 1.0},
        {"clutter": -1},
        {"max_turn": 200},
        {"jpeg_quality": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="generator setting"):
        dataclasses.replace(SMALL, **bad)


def test_the_tool_makes_things_and_people_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KD_SEARCH_OBJECTS", str(tmp_path / "things"))
    size = ["--num-train-images", "2", "--num-test-images", "1", "--preset", "tiny"]
    assert tool.main(["--kind", "objects", *size, "--layout", "kitti"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'things'}: 3 images" in said and "laid out as kitti" in said
    assert tool.main(["--kind", "objects", *size, "--layout", "kitti"]) == 0
    assert "kept" in capsys.readouterr().out
    assert tool.main(["--kind", "objects", *size, "--seed", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for wrong in (["--layout", "kitti"], ["--kind", "objects", "--num-cameras", "3"]):
        with pytest.raises(SystemExit) as stop:
            tool.main([*wrong, "--output", str(tmp_path / "none")])
        assert stop.value.code == 2
    assert not (tmp_path / "none").exists()


def test_people_are_still_the_default_of_the_tool(monkeypatch):
    monkeypatch.delenv("KD_SEARCH_GENERATED", raising=False)
    args = tool.parse_args([])
    assert args.kind == "people" and args.output.endswith("generated")
    assert isinstance(tool.build_config(tool.parse_args(["--kind", "objects"])), ObjectsConfig)
    assert OBJECTS_PRESETS["demo"] == ObjectsConfig()


def test_registered_sets_hold_the_generated_things(root, tmp_path):
    missing = str(tmp_path / "nowhere")
    register_objects(missing, prefix="kd_objects_under_test")
    name = "kd_objects_under_test_train"
    assert MetadataCatalog.get(name).thing_classes == list(OBJECT_CLASSES)
    with pytest.raises(FileNotFoundError, match=rf"^{name}: {missing} .*--kind objects"):
        DatasetCatalog.get(name)
    register_objects(str(root), prefix="kd_objects_under_test")
    dicts = DatasetCatalog.get(name)
    content = json.loads((root / "train.json").read_text())
    assert len(dicts) == 5
    assert sum(len(d["annotations"]) for d in dicts) == len(content["annotations"])
    assert MetadataCatalog.get(name).json_file == str(root / "train.json")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset.json").write_text("{}")
    (tmp_path / "broken" / "train.json").write_text("{")
    register_objects(str(tmp_path / "broken"), prefix="kd_objects_under_test")
    with pytest.raises(ValueError, match="train.json: not a JSON file"):
        DatasetCatalog.get(name)
