"""People held out with their pictures, and the queries of a test set."""

import json
import random

import pytest

from kd_search.data.person_search.held_out import choose_people, hold_out_people, write_queries_of
from kd_search.data.person_search.register import SplitFiles


def write_set(path, people_of, **more):
    """A COCO-JSON file from the people of each picture."""
    images, annotations = [], []
    for number, people in enumerate(people_of):
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 60})
        for place, person in enumerate(people):
            box = [10.0 * place, 5.0, 8.0, 20.0]
            annotations.append({"image_id": number, "bbox": box, "person_id": person})
    path.write_text(json.dumps({"images": images, "annotations": annotations, **more}))
    return str(path)


@pytest.fixture
def many(tmp_path):
    """60 pictures of 20 people, one to three in each, and 10 pictures of strangers."""
    draw = random.Random(3)
    people_of = [draw.sample(range(20), draw.randint(1, 3)) for _ in range(60)]
    return write_set(tmp_path / "train.json", [*people_of, *([[-1]] * 10)])


def content(path):
    return json.loads(path.read_text())


def people_in(part):
    ids = {a["person_id"] for a in part["annotations"]}
    return {person for person in ids if person is not None and person >= 0}


def test_people_and_pictures_are_apart_and_nothing_is_lost(many, tmp_path):
    held = hold_out_people(many, tmp_path / "split", seed=1)
    train, val, whole = content(held.train), content(held.test), json.loads(open(many).read())
    assert people_in(train).isdisjoint(people_in(val))
    names = [{image["file_name"] for image in part["images"]} for part in (train, val)]
    assert names[0].isdisjoint(names[1])
    assert names[0] | names[1] == {image["file_name"] for image in whole["images"]}
    assert len(train["annotations"]) + len(val["annotations"]) == len(whole["annotations"])
    assert held.people == len(people_in(val)) >= 2
    # Every picture of a held-out person is in the test set.
    for annotation in whole["annotations"]:
        if annotation["person_id"] in people_in(val):
            assert f"{annotation['image_id']}.jpg" in names[1]
    assert len(names[1]) <= 0.25 * 70 + 10
    assert train["kd_search_split"]["seed"] == 1


def test_the_seed_determines_the_people(many, tmp_path):
    found = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        held = hold_out_people(many, tmp_path / folder, seed=seed)
        found.append(people_in(content(held.test)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("seed", range(5))
def test_who_cannot_be_searched_for_is_not_drawn(seed):
    pictures = {"ann": {1}, "bob": {2}, "cid": {3, 4}, "dan": {5, 6}, "eve": {3, 5, 7, 8}}
    assert set(choose_people(pictures, 4, seed)) <= {"cid", "dan", "eve"}
    assert choose_people(pictures, 4, seed)


def test_a_set_of_one_group_is_refused(tmp_path):
    path = write_set(tmp_path / "train.json", [[0, 1, 2, 3]] * 12)
    with pytest.raises(ValueError, match=r"train.json.*--test"):
        hold_out_people(path, tmp_path / "split", seed=1)
    assert not (tmp_path / "split").exists()


def test_queries_are_the_first_and_the_last_picture_of_everybody_in_two(tmp_path):
    people_of = [["ann"], ["bob", "ann"], ["ann"], ["bob"], ["cid"], [None]]
    path = write_set(tmp_path / "test.json", people_of)
    files = SplitFiles(path, str(tmp_path))
    assert write_queries_of(files.load(), tmp_path / "q.txt") == (4, 2)
    lines = (tmp_path / "q.txt").read_text().splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [
        *(("ann", "0.jpg"), ("ann", "2.jpg"), ("bob", "1.jpg"), ("bob", "3.jpg"))
    ]
    loaded = SplitFiles(path, str(tmp_path), str(tmp_path / "q.txt")).load()
    query, record = loaded.queries[1]
    assert record["file_name"].endswith("2.jpg") and query["bbox"] == [0.0, 5.0, 8.0, 25.0]


def test_pictures_outside_of_the_gallery_are_no_queries(tmp_path):
    path = write_set(tmp_path / "test.json", [["ann"], ["ann"], ["ann"]])
    whole = json.loads(open(path).read())
    whole["images"][0]["in_gallery"] = False
    open(path, "w").write(json.dumps(whole))
    write_queries_of(SplitFiles(path, str(tmp_path)).load(), tmp_path / "q.txt")
    assert "0.jpg" not in (tmp_path / "q.txt").read_text()


@pytest.mark.parametrize("people_of", [[["ann"], ["bob"]], [["ann b"], ["ann b"]]])
def test_sets_without_possible_queries_are_refused(people_of, tmp_path):
    path = write_set(tmp_path / "test.json", people_of)
    with pytest.raises(ValueError, match="no query|'ann b'"):
        write_queries_of(SplitFiles(path, str(tmp_path)).load(), tmp_path / "q.txt")
    assert not (tmp_path / "q.txt").exists()
