"""The data set on disk: reproducible, complete, refused or kept, and its guarantees."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from kd_search.synthetic import PRESETS, GeneratorConfig, generate_dataset
from kd_search.synthetic.people_writer import render_image
from kd_search.synthetic.schedule import Sighting, choose_queries, plan_split

TINY = PRESETS["tiny"]


def _digests(root):
    files = sorted(path for path in Path(root).rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthesis") / "tiny"
    assert generate_dataset(root, TINY, seed=0, progress=False)
    return root


def _coco(root, split):
    return json.loads((root / f"{split}.json").read_text())


def test_same_seed_same_bytes_with_one_or_two_processes(tiny, tmp_path):
    assert generate_dataset(tmp_path / "again", TINY, seed=0, workers=2, progress=False)
    assert _digests(tmp_path / "again") == _digests(tiny)


def test_another_seed_gives_other_bytes(tiny, tmp_path):
    assert generate_dataset(tmp_path / "other", TINY, seed=1, progress=False)
    other, first = _digests(tmp_path / "other"), _digests(tiny)
    assert set(other) == set(first)
    assert all(other[name] != first[name] for name in first if name.endswith(".jpg"))


def test_an_image_depends_on_nothing_but_its_plan(tiny):
    # The sixth image alone, without the ones before, and with the lossy step undone by decoding.
    rng = np.random.default_rng(np.random.SeedSequence([0, 2, 1]))
    plan = plan_split(TINY, "test", rng)[5]
    image = render_image(TINY, 0, "test", plan).image
    record = _coco(tiny, "test")["images"][5]
    stored = cv2.imread(str(tiny / "test" / "images" / record["file_name"]))
    assert np.abs(stored[..., ::-1].astype(int) - image).mean() < 6


def test_files_hold_what_the_format_says(tiny):
    for split, count in (("train", 12), ("test", 8)):
        coco = _coco(tiny, split)
        assert len(coco["images"]) == count
        assert [category["name"] for category in coco["categories"]] == ["person"]
        assert len({image["id"] for image in coco["images"]}) == count
        for image in coco["images"]:
            pixels = cv2.imread(str(tiny / split / "images" / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
            name = f"c{image['camera_id']}s1_{image['frame_id']:06d}.jpg"
            assert image["file_name"] == name
        ids = [annotation["id"] for annotation in coco["annotations"]]
        assert len(set(ids)) == len(ids)
        for annotation in coco["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= TINY.scene.width and y + h <= TINY.scene.height
    description = json.loads((tiny / "dataset.json").read_text())
    assert GeneratorConfig.from_dict(description["config"]) == TINY
    assert description["seed"] == 0


def test_nobody_is_twice_in_an_image_and_some_are_unlabelled(tiny):
    unlabelled = 0
    for split in ("train", "test"):
        people = defaultdict(list)
        for annotation in _coco(tiny, split)["annotations"]:
            people[annotation["image_id"]].append(annotation["person_id"])
        for ids in people.values():
            labelled = [i for i in ids if i >= 0]
            assert len(set(labelled)) == len(labelled)
            assert 1 <= len(ids) <= TINY.scene.max_people
            unlabelled += ids.count(-1)
    assert unlabelled > 0


def test_train_and_test_people_are_disjoint(tiny):
    train, test = (
        {a["person_id"] for a in _coco(tiny, split)["annotations"]} - {-1}
        for split in ("train", "test")
    )
    assert len(train) == TINY.num_train_ids and len(test) == TINY.num_test_ids
    assert not train & test


def test_each_train_identity_is_in_four_images_of_two_cameras(tiny):
    coco = _coco(tiny, "train")
    camera = {image["id"]: image["camera_id"] for image in coco["images"]}
    images, cameras = defaultdict(set), defaultdict(set)
    for annotation in coco["annotations"]:
        images[annotation["person_id"]].add(annotation["image_id"])
        cameras[annotation["person_id"]].add(camera[annotation["image_id"]])
    for person_id in range(1, TINY.num_train_ids + 1):
        assert len(images[person_id]) >= 4 and len(cameras[person_id]) >= 2


def test_each_query_can_be_found_in_two_other_frames_and_another_camera(tiny):
    coco = _coco(tiny, "test")
    images = {image["id"]: image for image in coco["images"]}
    frames = defaultdict(set)
    boxes = set()
    for annotation in coco["annotations"]:
        image = images[annotation["image_id"]]
        frame = os.path.splitext(image["file_name"])[0]
        frames[annotation["person_id"]].add((frame, image["camera_id"]))
        boxes.add((annotation["person_id"], *annotation["bbox"], frame))
    lines = [line.split() for line in (tiny / "query_info.txt").read_text().splitlines()]
    assert {int(line[0]) for line in lines} == set(range(7, 11))
    assert len(lines) == TINY.queries_per_id * TINY.num_test_ids
    for pid, x, y, w, h, frame in lines:
        assert (int(pid), int(x), int(y), int(w), int(h), frame) in boxes
        camera = next(c for f, c in frames[int(pid)] if f == frame)
        others = [(f, c) for f, c in frames[int(pid)] if f != frame]
        assert len(others) >= 2 and any(c != camera for _, c in others)


def test_queries_that_cannot_be_found_elsewhere_are_not_asked():
    def sighting(person_id, frame, camera):
        return Sighting(person_id, frame, camera, (0, 0, 9, 9), 1.0)

    same_camera = [sighting(1, f"f{k}", 1) for k in range(4)]
    too_few = [sighting(2, "f0", 1), sighting(2, "f5", 2)]
    good = [sighting(3, "f0", 1), sighting(3, "f5", 2), sighting(3, "f6", 2)]
    queries = choose_queries(same_camera + too_few + good, 2, np.random.default_rng(0))
    assert [query.person_id for query in queries] == [3, 3]
    assert {query.camera_id for query in queries} == {1, 2}


def test_the_demo_schedule_shows_everybody_often_and_everywhere():
    config = PRESETS["demo"]
    for split in ("train", "test"):
        seen, cameras = defaultdict(int), defaultdict(set)
        for plan in plan_split(config, split, np.random.default_rng(0)):
            assert len(plan.person_ids) + plan.num_unlabelled <= config.scene.max_people
            for person_id in plan.person_ids:
                seen[person_id] += 1
                cameras[person_id].add(plan.camera_id)
        assert len(seen) == config.num_ids(split)
        assert min(seen.values()) >= 8
        assert all(len(found) == config.num_cameras for found in cameras.values())


def test_the_same_data_set_is_kept_and_another_refused(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert not generate_dataset(tiny, TINY, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"has another seed.*--overwrite"):
        generate_dataset(tiny, TINY, seed=5, progress=False)
    with pytest.raises(ValueError, match="has another config"):
        generate_dataset(tiny, dataclasses.replace(TINY, num_cameras=3), seed=0, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_a_data_set_that_lost_an_image_is_refused_until_overwritten(tmp_path):
    root = tmp_path / "set"
    generate_dataset(root, TINY, progress=False)
    whole = _digests(root)
    next((root / "train" / "images").iterdir()).unlink()
    with pytest.raises(ValueError, match="lacks images"):
        generate_dataset(root, TINY, progress=False)
    assert generate_dataset(root, TINY, overwrite=True, progress=False)
    assert _digests(root) == whole
    assert os.listdir(tmp_path) == ["set"]


def test_a_folder_that_is_no_data_set_is_never_touched(tmp_path):
    (tmp_path / "letters.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=str(tmp_path)):
            generate_dataset(tmp_path, TINY, overwrite=overwrite, progress=False)
    assert (tmp_path / "letters.txt").read_text() == "keep me"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("kd_search.synthetic.generated_set.write_json", fail)
    with pytest.raises(OSError, match="No space"):
        generate_dataset(tmp_path / "set", TINY, progress=False)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".set.partial-{gone.pid}").mkdir()
    (tmp_path / f".set.partial-{os.getppid()}").mkdir()  # a run that is alive
    generate_dataset(tmp_path / "set", TINY, progress=False)
    assert sorted(os.listdir(tmp_path)) == [f".set.partial-{os.getppid()}", "set"]


def test_too_many_identities_for_the_images_are_refused(tmp_path):
    config = dataclasses.replace(TINY, num_train_ids=30)
    with pytest.raises(ValueError, match="num_train_images .*num_train_ids"):
        generate_dataset(tmp_path / "set", config, progress=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_cameras": 1}, "num_cameras"),
        ({"num_test_ids": 0}, "num_test_ids"),
        ({"scene": {"min_labelled": 5, "max_labelled": 4}}, "min_labelled"),
        ({"scene": {"max_person_height": 500}}, "max_person_height"),
        ({"colour": "red"}, "unknown generator settings: colour"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig.from_dict(change)
