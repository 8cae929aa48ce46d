"""Projects of own data: what is written, what is refused, and what is kept."""

import json
import random

import pytest
import torch
import yaml
from little_release import LittleCUHK, LittlePRW, put_image, put_sequence

from kd_search.cli import main
from kd_search.data.person_search.register import load_split
from kd_search.pipeline.project import Project


class OwnData:
    """Pictures with a train.json, a test.json and a query file; the folder's name is unique, as
    data sets are registered by it."""

    def __init__(self, root):
        self.root = root
        draw = random.Random(1)
        self.parts = {
            "train": self.part("a", [draw.sample(range(8), 2) for _ in range(24)]),
            "test": self.part("b", [draw.sample(range(100, 104), 2) for _ in range(10)]),
        }
        self.queries = []
        for person in range(100, 104):
            note = next(a for a in self.parts["test"]["annotations"] if a["person_id"] == person)
            box = " ".join(map(str, note["bbox"]))
            self.queries.append(f"{person} {box} b{note['image_id']}.jpg")

    @staticmethod
    def part(prefix, people_of):
        images, annotations = [], []
        for number, people in enumerate(people_of):
            name = f"{prefix}{number}.jpg"
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            for place, person in enumerate(people):
                box = [4 + 30 * place, 4, 12, 36]
                annotations.append({"image_id": number, "bbox": box, "person_id": person})
        return {"images": images, "annotations": annotations}

    def write(self):
        for name, part in self.parts.items():
            (self.root / f"{name}.json").write_text(json.dumps(part))
            for image in part["images"]:
                put_image(self.root / "photos" / image["file_name"])
        (self.root / "q.txt").write_text("\n".join(self.queries))
        return self

    def init(self, folder, *more, test=True):
        command = ["init", str(folder), "--train", str(self.root / "train.json")]
        command += ["--images", str(self.root / "photos")]
        if test:
            command += ["--test", str(self.root / "test.json")]
            command += ["--queries", str(self.root / "q.txt")]
        return main([*command, *more])


@pytest.fixture
def own(tmp_path):
    return OwnData(tmp_path)


def config(project, model="teacher"):
    return project.config(model, project.folder / model)


def test_a_project_of_own_files(own, tmp_path, capsys):
    folder = tmp_path / "whole"
    assert own.write().init(folder) == 0
    said = capsys.readouterr().out
    assert "whole_train: 24 images" in said and "8 identities" in said
    assert "schedule: 450 iterations" in said and "kd-search distill" in said
    project = Project.open(folder)
    for model in ("teacher", "student", "student_distilled"):
        cfg = config(project, model)
        assert cfg.DATASETS.TRAIN == ("whole_train",) and cfg.DATASETS.TEST == ("whole_test",)
        assert cfg.MODEL.OIM.NUM_IDS == 8 and cfg.INPUT.MIN_SIZE_TEST == 48
        assert yaml.safe_load(project.config_file(model).read_text())["OUTPUT_DIR"] == str(
            folder / model
        )
    assert config(project, "student_distilled").DISTILLATION.TERMS == ["IDTableTerm"]
    base = yaml.safe_load(project.config_file("teacher").read_text())["_BASE_"][0]
    assert base.startswith("kd_search://")
    assert load_split("whole_test").queries[0][0]["bbox"]


def test_a_teacher_from_imagenet_weights(own, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.0.weight": torch.zeros(1)}, "v2.pth")
    words = ("--teacher", "mobilenetv2_fpn256", "--teacher-weights", "v2.pth")
    assert own.write().init(tmp_path / "nets", *words) == 0
    assert "teacher: mobilenetv2_fpn256" in capsys.readouterr().out
    project = Project.open(tmp_path / "nets")
    # Other working directories find the file.
    monkeypatch.chdir("/")
    teacher, student = config(project), config(project, "student")
    assert teacher.MODEL.TORCHVISION.WEIGHTS == str(tmp_path / "v2.pth")
    assert teacher.MODEL.WEIGHTS == student.MODEL.WEIGHTS == ""
    assert (teacher.INPUT.FORMAT, student.INPUT.FORMAT) == ("RGB", "BGR")
    anchors = student.MODEL.ANCHOR_GENERATOR.SIZES
    assert teacher.MODEL.ANCHOR_GENERATOR.SIZES == anchors != [[32], [64], [128]]


def test_without_a_test_set_people_are_held_out(own, tmp_path, capsys):
    # People who are in few pictures each.
    draw = random.Random(4)
    own.parts["train"] = own.part("a", [draw.sample(range(24), 2) for _ in range(48)])
    assert own.write().init(tmp_path / "held", test=False) == 0
    assert "no --test was given" in capsys.readouterr().out
    project = Project.open(tmp_path / "held")
    cfg = config(project)
    splits = [load_split(name) for name in ("held_train", "held_val")]
    ids = [set(split.id_map.to_list()) for split in splits]
    assert ids[0].isdisjoint(ids[1]) and cfg.MODEL.OIM.NUM_IDS == len(ids[0])
    names = [{record["file_name"] for record in split.dicts} for split in splits]
    assert names[0].isdisjoint(names[1]) and splits[1].queries
    assert cfg.DATASETS.TEST == ("held_val",)


def test_the_same_command_keeps_what_was_edited(own, tmp_path, capsys):
    folder = tmp_path / "edited"
    own.write().init(folder)
    path = folder / "configs" / "data.yaml"
    path.write_text(path.read_text() + "\nVIS_PERIOD: 7\n")
    assert own.init(folder) == 0
    assert "kept" in capsys.readouterr().out
    assert config(Project.open(folder)).VIS_PERIOD == 7


def test_other_options_are_refused(own, tmp_path, capsys):
    folder = tmp_path / "first"
    own.write().init(folder)
    before = (folder / "project.yaml").read_text()
    assert own.init(folder, "--seed", "5") == 2
    assert "seed 1, not 5" in capsys.readouterr().err
    assert (folder / "project.yaml").read_text() == before


def test_a_folder_of_something_else_is_refused(own, tmp_path, capsys):
    (tmp_path / "other" / "teacher").mkdir(parents=True)
    assert own.write().init(tmp_path / "other") == 2
    assert "holds teacher" in capsys.readouterr().err


def break_picture(own):
    (own.root / "photos" / "a3.jpg").write_bytes(b"no picture")


def share_person(own):
    own.parts["test"]["annotations"][0]["person_id"] = 3
    own.write()


def share_picture(own):
    # No query is in it.
    own.parts["test"]["images"][9]["file_name"] = "a1.jpg"
    own.write()


def forget_identities(own):
    for annotation in own.parts["train"]["annotations"]:
        annotation["person_id"] = -1
    own.write()


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (break_picture, "image_unreadable: a3.jpg"),
        (share_person, "id_in_train_and_test: id 3"),
        (share_picture, "image_in_train_and_test"),
        (forget_identities, "0 people with an identity"),
    ],
)
def test_data_that_cannot_be_used_are_refused_and_nothing_is_left(
    own, tmp_path, capsys, harm, named
):
    own.write()
    harm(own)
    folder = tmp_path / "harmed"
    assert own.init(folder) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error
    assert not folder.exists()


def test_defects_that_are_usual_do_not_stop_it(own, tmp_path, capsys):
    own.parts["train"]["annotations"][0]["bbox"] = [-3, 4, 12, 36]
    assert own.write().init(tmp_path / "usual") == 0
    assert "1 box_out_of_image (clipped" in capsys.readouterr().out


def test_folders_of_mot_are_divided_by_sequences(tmp_path, capsys):
    root = tmp_path / "mot"
    for name, length in (("A-01", 8), ("B-02", 3), ("C-03", 6)):
        frames = range(1, length + 1)
        rows = [(f, p, 5 + 20 * p, 5, 12, 36, 1, 1, 1) for f in frames for p in (0, 1)]
        put_sequence(root / name, rows, frames)
    command = ["init", str(tmp_path / "cams"), "--mot", str(root)]
    assert main([*command, "--mot-options", "gallery_gap=1"]) == 0
    assert "sequences B-02" in capsys.readouterr().out
    cfg = config(Project.open(tmp_path / "cams"))
    people = set(load_split(cfg.DATASETS.TRAIN[0]).id_map.to_list())
    assert people == {"A-01/0", "A-01/1", "C-03/0", "C-03/1"}
    assert len(load_split(cfg.DATASETS.TEST[0]).queries) == 2


def test_one_sequence_cannot_be_divided(tmp_path, capsys):
    put_sequence(tmp_path / "mot" / "A-01", [(1, 0, 5, 5, 12, 36, 1, 1, 1)], [1])
    assert main(["init", str(tmp_path / "one"), "--mot", str(tmp_path / "mot")]) == 2
    assert "--mot" in capsys.readouterr().err and not (tmp_path / "one").exists()


def test_a_folder_of_prw(tmp_path, capsys):
    LittlePRW(tmp_path / "prw").write()
    assert main(["init", str(tmp_path / "street"), "--prw", str(tmp_path / "prw")]) == 0
    cfg = config(Project.open(tmp_path / "street"))
    assert cfg.MODEL.OIM.NUM_IDS == 3
    assert len(load_split(cfg.DATASETS.TEST[0]).queries) == 2


def test_a_folder_of_cuhk_sysu(tmp_path, capsys):
    LittleCUHK(tmp_path / "cuhk").write()
    command = ["init", str(tmp_path / "films"), "--cuhk-sysu", str(tmp_path / "cuhk")]
    assert main(command) == 0
    cfg = config(Project.open(tmp_path / "films"))
    assert load_split(cfg.DATASETS.TEST[0]).galleries.keys() == {"G50"}


def test_a_release_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["init", str(tmp_path / "none"), "--prw", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and "Traceback" not in error


@pytest.mark.parametrize(
    "words",
    [
        ["--train", "a.json"],
        ["--prw", "prw", "--mot", "mot"],
        ["--prw", "prw", "--images", "photos"],
        ["--train", "a.json", "--images", "p", "--mot-options", "x=1"],
        [],
    ],
)
def test_options_that_do_not_fit_are_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        main(["init", str(tmp_path / "p"), *words])
    assert refusal.value.code == 2 and "init: error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--teacher", "r9"], "--teacher r9"),
        (["--teacher", "r50_fpn"], "--teacher-weights"),
        (["--student", "mobilenetv2_fpn64"], "--student-weights"),
        (["--student-weights", "no.pth"], "no.pth"),
    ],
)
def test_networks_and_weights_that_are_not_there(own, tmp_path, capsys, options, named):
    assert own.write().init(tmp_path / "nets", *options) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "nets").exists()
