"""The generated set, laid out in every format and read back."""

import json
import os
import shutil

import numpy as np
import pytest
from little_release import LittleCUHK

from kd_search.cli import check, convert
from kd_search.data import get_person_search_dicts, register_person_search_coco
from kd_search.data.person_search.cuhk_sysu import CUHKSYSUFiles
from kd_search.data.person_search.mot import MOTFiles
from kd_search.data.person_search.prw_mat import PRWFiles
from kd_search.data.person_search.register import SplitFiles, load_split
from kd_search.data.writers import (
    ImageFolder,
    new_folder,
    write_coco_json,
    write_cuhk_sysu,
    write_mot,
    write_prw,
)
from kd_search.synthetic import PRESETS, generate_dataset


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated") / "set"
    generate_dataset(root, PRESETS["tiny"], seed=3, progress=False)
    return root


@pytest.fixture(autouse=True)
def _places(generated, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(generated))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("KD_SEARCH_MOT", str(tmp_path / "mot"))


@pytest.fixture
def contents():
    return tuple(load_split(f"kd_generated_{part}") for part in ("train", "test"))


def _image(record):
    with open(record["file_name"], "rb") as stream:
        return stream.read()


def _compare(ours, ids, theirs, their_ids, name=lambda original: original, cameras=True):
    """Assert that two splits are equal; ``name`` is what an original id has become."""

    def original(row, id_map):
        return id_map.original(row) if row >= 0 else None

    def key(image):
        return _image(image)

    assert len(ours) == len(theirs)
    for a, b in zip(sorted(ours, key=key), sorted(theirs, key=key)):
        assert _image(a) == _image(b)
        for what in ("height", "width", "in_gallery"):
            assert a[what] == b[what]
        if cameras:
            assert (a["camera_id"], a["frame_id"]) == (b["camera_id"], b["frame_id"])
        for what in ("annotations", "queries"):
            sides = []
            for record, id_map in ((a, ids), (b, their_ids)):
                entries = []
                for entry in record.get(what, ()):
                    person = original(entry["person_id"], id_map)
                    if record is a and person is not None:
                        person = name(person)
                    extra = (entry.get("query_id"), entry.get("iscrowd"))
                    entries.append((entry["bbox"], person, extra))
                sides.append(entries)
            key_of = {"annotations": lambda e: e[0], "queries": lambda e: e[2][0]}[what]
            assert sorted(sides[0], key=key_of) == sorted(sides[1], key=key_of)


FORMATS = {
    "coco": (
        write_coco_json,
        lambda root, part: SplitFiles(
            str(root / f"{part}.json"),
            str(root / part / "images"),
            str(root / "query_info.txt") if part == "test" else None,
        ),
    ),
    "prw": (
        write_prw,
        lambda root, part: PRWFiles(
            str(root), part, str(root / "query_info.txt") if part == "test" else None
        ),
    ),
    "mot": (write_mot, lambda root, part: MOTFiles(str(root / part), queries=part == "test")),
}


@pytest.mark.parametrize("form", FORMATS)
def test_boxes_ids_queries_and_cameras_come_back_equal(form, contents, tmp_path):
    write, files = FORMATS[form]
    assert write(tmp_path, *contents) == []
    for part, content in zip(("train", "test"), contents):
        loaded = files(tmp_path, part).load()
        _compare(content.dicts, content.id_map, loaded.dicts, loaded.id_map)
        assert loaded.id_map == content.id_map and not loaded.galleries


def test_cuhk_sysu_comes_back_equal_with_its_galleries(contents, tmp_path):
    notes = write_cuhk_sysu(tmp_path, *contents, gallery_sizes=[6, 7], seed=2)
    assert notes == [
        "cameras and frame numbers are left out: CUHK-SYSU has none",
        "people have new ids; person_ids.json has new and old ones",
    ]
    train, test = contents
    rows = {original: row for row, original in enumerate(train.id_map.to_list())}
    loaded = CUHKSYSUFiles(str(tmp_path), "train").load()
    _compare(train.dicts, train.id_map, loaded.dicts, loaded.id_map, rows.get, cameras=False)
    loaded = CUHKSYSUFiles(str(tmp_path), "test").load()
    _compare(test.dicts, test.id_map, loaded.dicts, loaded.id_map, "p{}".format, cameras=False)
    assert list(loaded.galleries) == ["G6", "G7"]
    for size in (6, 7):
        gallery = loaded.galleries[f"G{size}"]
        assert gallery["query_ids"].tolist() == list(range(8))
        assert np.diff(gallery["offsets"]).tolist() == [size] * 8
        for i, (query, own) in enumerate(
            sorted(
                ((q, d) for d in loaded.dicts for q in d.get("queries", ())),
                key=lambda pair: pair[0]["query_id"],
            )
        ):
            part = slice(i * size, (i + 1) * size)
            images = gallery["images"][part].tolist()
            boxes = gallery["boxes"][part]
            expected = {
                j: [a["bbox"] for a in d["annotations"] if a["person_id"] == query["person_id"]]
                for j, d in enumerate(loaded.dicts)
                if d is not own
            }
            found = np.isfinite(boxes).all(axis=1)
            # Every box of the person, in front; then images without the person, each once.
            assert found.sum() == sum(map(len, expected.values())) and found[: found.sum()].all()
            for image, box, is_match in zip(images, boxes.tolist(), found):
                assert (box in expected[image]) if is_match else not expected[image]
            assert len(set(images)) == size


def test_galleries_follow_from_the_seed(contents, tmp_path):
    def galleries(name, seed):
        write_cuhk_sysu(tmp_path / name, None, contents[1], gallery_sizes=[6], seed=seed)
        loaded = CUHKSYSUFiles(str(tmp_path / name), "test").load()
        return loaded.galleries["G6"]["images"].tolist()

    first = galleries("a", 0)
    assert first == galleries("b", 0)
    assert any(first != galleries(f"c{seed}", seed) for seed in range(1, 6))


def test_galleries_that_are_there_are_written_as_they_are(tmp_path):
    little = LittleCUHK(tmp_path / "cuhk_sysu")
    rows = little.galleries[50]
    odd = [("s6.jpg", None), ("s6.jpg", None), ("s5.jpg", [2, 2, 8, 16])]
    little.galleries[100] = [(*rows[1][:3], odd), (*rows[0][:3], odd)]
    new = ("p9", "s6.jpg", [3, 3, 8, 16], [("s4.jpg", [40, 1, 8, 16])])
    little.subsets = {("Occlusion", "Occlusion1"): [new], ("Resolution", "Test_Size"): rows[:1]}
    little.write()
    test = load_split("cuhk_sysu_test")
    train = load_split("cuhk_sysu_train")
    write_cuhk_sysu(tmp_path / "new", train, test)
    loaded = CUHKSYSUFiles(str(tmp_path / "new"), "test").load()
    assert list(loaded.galleries) == ["G50", "G100", "occlusion", "resolution"]
    for name in loaded.galleries:
        for key, value in test.galleries[name].items():
            np.testing.assert_array_equal(loaded.galleries[name][key], value)
    _compare(test.dicts, test.id_map, loaded.dicts, loaded.id_map, cameras=False)
    assert CUHKSYSUFiles(str(tmp_path / "new"), "train").load().metadata["person_names"] == (
        "p20",
        "p3",
    )


def test_what_the_sizes_of_the_release_do_not_fit_gets_one_gallery_of_all(contents, tmp_path):
    write_cuhk_sysu(tmp_path, None, contents[1])
    assert os.listdir(tmp_path / "annotation/test/train_test") == ["TestG7.mat"]


def test_a_gallery_that_cannot_have_its_size_is_refused(contents, tmp_path):
    with pytest.raises(ValueError, match=r"query \d+ .*gallery of 8"):
        write_cuhk_sysu(tmp_path / "a", None, contents[1], gallery_sizes=[8])
    with pytest.raises(ValueError, match="gallery of 1:"):
        write_cuhk_sysu(tmp_path / "b", None, contents[1], gallery_sizes=[1])


def test_what_a_format_cannot_keep_is_said(contents, tmp_path):
    train, test = contents
    for record in train.dicts:
        record["annotations"][0]["iscrowd"] = 1
    person = test.queries[0][0]["person_id"]
    for record in test.dicts:
        record["queries"] = [q for q in record.get("queries", ()) if q["person_id"] != person]
    boxes = sum(a["person_id"] == person for d in test.dicts for a in d["annotations"])
    notes = write_prw(tmp_path / "prw", train, test)
    assert notes == ["12 crowd boxes are left out: PRW has none"]
    notes = write_cuhk_sysu(tmp_path / "cuhk", train, test, gallery_sizes=[7])
    assert "12 crowd boxes are left out: CUHK-SYSU has none" in notes
    assert f"{boxes} test boxes of 1 people without a query lose their identity" in notes
    assert write_mot(tmp_path / "mot", train, test) == []
    loaded = MOTFiles(str(tmp_path / "mot/train")).load()
    assert sum(a["iscrowd"] for d in loaded.dicts for a in d["annotations"]) == 12


@pytest.mark.parametrize("write", [write_prw, write_mot, write_cuhk_sysu])
def test_an_image_outside_of_the_gallery_is_refused(write, contents, tmp_path):
    contents[1].dicts[2]["in_gallery"] = False
    with pytest.raises(ValueError, match="jpg .*gallery.*COCO-JSON"):
        write(tmp_path, *contents)
    write_coco_json(tmp_path / "coco", *contents)
    content = json.loads((tmp_path / "coco/test.json").read_text())
    assert sum(not image["in_gallery"] for image in content["images"]) == 1


def test_people_who_are_numbered_apart_stay_apart(little_set, registry, tmp_path):
    for part in ("train", "test"):
        made = little_set(part).add_image("c1s1_1.jpg", [("ann", [0, 0, 9, 9])])
        made.add_image("c1s1_2.jpg", [("ann", [0, 0, 9, 9])])
        queries = None
        if part == "test":
            queries = str(made.write_queries("ann 0 0 9 9 c1s1_1").query_info)
        registry.append(f"own_{part}")
        register_person_search_coco(
            f"own_{part}", str(made.json_file), str(made.images), queries, id_space=part
        )
        # PRW keeps all frames in one folder, so that names must differ.
        if part == "test":
            for image in made.content["images"]:
                image["camera_id"] = 4
            made.write()
    train, test = (load_split(f"own_{part}") for part in ("train", "test"))
    notes = write_prw(tmp_path / "prw", train, test)
    assert notes == ["people have new ids; person_ids.json has new and old ones"]
    assert json.loads((tmp_path / "prw/person_ids.json").read_text()) == {
        "train": [[1, "ann"]],
        "test": [[2, "ann"]],
    }
    assert PRWFiles(str(tmp_path / "prw"), "test").load().id_map.to_list() == [2]
    assert sorted(os.listdir(tmp_path / "prw/frames")) == [
        "c1s1_1.jpg",
        "c1s1_2.jpg",
        "c4s1_000001.jpg",
        "c4s1_000002.jpg",
    ]
    write_cuhk_sysu(tmp_path / "cuhk", train, test)
    assert CUHKSYSUFiles(str(tmp_path / "cuhk"), "test").load().id_map.to_list() == ["p2"]
    write_mot(tmp_path / "mot", train, test)
    assert MOTFiles(str(tmp_path / "mot/train")).load().id_map.to_list() == [1]


def test_names_that_do_not_fit_are_refused(little_set, registry, tmp_path):
    made = little_set().add_image("a.png", [(1, [0, 0, 9, 9])])
    registry.append("own_train")
    register_person_search_coco("own_train", str(made.json_file), str(made.images))
    with pytest.raises(ValueError, match="own_train: .*a.png .*JPEG"):
        write_prw(tmp_path / "prw", load_split("own_train"), None)
    (made.images / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="a.png"):
        write_mot(tmp_path / "mot", load_split("own_train"), None)


def test_images_are_linked_or_copied(generated, tmp_path):
    source = next((generated / "train/images").iterdir())
    images = ImageFolder()
    images.put(str(source), tmp_path / "a.jpg")
    assert os.path.samefile(source, tmp_path / "a.jpg") and (images.linked, images.copied) == (1, 0)
    images = ImageFolder(copy=True)
    images.put(str(source), tmp_path / "b.jpg")
    assert not os.path.samefile(source, tmp_path / "b.jpg")
    assert (tmp_path / "b.jpg").read_bytes() == source.read_bytes() and images.copied == 1
    with pytest.raises(ValueError, match="b.jpg"):
        images.put(str(source), tmp_path / "b.jpg")


def test_images_are_copied_where_links_are_impossible(generated, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    images = ImageFolder()
    images.put(str(next((generated / "train/images").iterdir())), tmp_path / "a.jpg")
    assert (images.linked, images.copied) == (0, 1) and (tmp_path / "a.jpg").is_file()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "new") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / "new") as folder:
        (folder / "whole").write_text("x")
    assert os.listdir(tmp_path / "new") == ["whole"] and os.listdir(tmp_path) == ["new"]
    with pytest.raises(ValueError, match="new exists"), new_folder(tmp_path / "new"):
        pass


@pytest.mark.parametrize("form", ["coco", "cuhk_sysu", "mot", "prw"])
def test_the_tool_writes_sets_that_the_checker_counts_alike(form, tmp_path, capsys):
    # The folder has the name that the registered sets are looked for under.
    output = str(tmp_path / form)
    args = ["--dataset", "kd_generated", "--format", form, "--output", output]
    assert convert.main(args) == 0
    said = capsys.readouterr().out
    assert "kd_generated_test: 8 images" in said and "20 images hard-linked, 0 copied" in said
    for part in ("train", "test"):
        if form == "coco":
            args = ["--json", f"{output}/{part}.json", "--images", f"{output}/{part}/images"]
            args += ["--query-info", f"{output}/query_info.txt"] if part == "test" else []
        else:
            args = ["--dataset", f"{form}_{part}"]
        report = tmp_path / "report.json"
        assert check.main([*args, "--json-report", str(report)]) == 0
        check.main(["--dataset", f"kd_generated_{part}", "--json-report", f"{report}2"])
        counts = json.loads(report.read_text())["counts"]
        expected = json.loads((tmp_path / "report.json2").read_text())["counts"]
        if form == "cuhk_sysu":
            expected["cameras"] = 0
            counts = {k: v for k, v in counts.items() if not k.startswith("G7")}
        assert counts == expected


def test_one_split_can_be_written_and_others_are_refused(tmp_path, capsys):
    def run(*args):
        return convert.main([*args, "--output", str(tmp_path / "prw")])

    assert run("--dataset", "kd_generated_test", "--format", "prw") == 0
    assert len(get_person_search_dicts("prw_test")[0]) == 8
    assert not (tmp_path / "prw/frame_train.mat").exists()
    assert run("--dataset", "kd_generated", "--format", "prw") == 2
    assert "prw exists" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "prw")
    assert run("--dataset", "nobody", "--format", "prw") == 2
    assert "'nobody' is not registered, nor is nobody_train" in capsys.readouterr().err
    assert run("--dataset", "kd_generated", "--format", "cuhk_sysu", "--gallery-sizes", "900") == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "prw").exists()
    with pytest.raises(SystemExit):
        run("--dataset", "kd_generated", "--format", "prw", "--gallery-sizes", "5")
