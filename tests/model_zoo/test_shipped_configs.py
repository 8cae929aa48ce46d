"""Shipped configs by name: in Python, on the command line, as _BASE_ and as a teacher's config."""

import argparse

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from tiny import REPO

from kd_search import model_zoo
from kd_search.config import get_cfg, shipped
from kd_search.config.files import merge_config_file
from kd_search.distillation.teacher import read_teacher_config
from kd_search.engine import build_config, setup

STUDENT = "PersonSearchKD/generated/student_r18w50_fpn_id_table.yaml"
IDS = ["MODEL.OIM.NUM_IDS", "7"]


def own_config(folder, base, **keys):
    (folder / "own.yaml").write_text(yaml.safe_dump({"_BASE_": base, **keys}))
    return str(folder / "own.yaml")


def test_names_are_paths_below_the_folders_of_configs():
    assert model_zoo.get_config_file("prw/r50_fpn.yaml") == str(REPO / "configs/prw/r50_fpn.yaml")
    below = "projects/PersonSearchKD/configs/generated/student_r18w50_fpn_id_table.yaml"
    assert model_zoo.get_config_file(STUDENT) == str(REPO / below)
    assert model_zoo.get_config_file(below) == model_zoo.get_config_file(STUDENT)
    names = model_zoo.get_config_names()
    assert {STUDENT, "prw/r50_fpn.yaml"} < set(names)
    assert not any("Base-" in name or name.startswith("configs/") for name in names)
    # They need a package of their own.
    assert not any(name.startswith(("Rivals/", "QEEPS/")) for name in names)


def test_every_shipped_config_can_be_merged_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in model_zoo.get_config_names():
        cfg = model_zoo.get_config(name)
        expected = get_cfg()
        expected.merge_from_file(model_zoo.get_config_file(name), allow_unsafe=False)
        assert cfg == expected and not cfg.is_frozen()


@pytest.mark.parametrize("name", ["prw/r50_fpn.yaml", "configs/prw/r50_fpn.yaml"])
def test_a_config_outside_of_the_package_is_based_on_a_shipped_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    own = own_config(tmp_path, f"kd_search://{name}", SOLVER={"MAX_ITER": 7})
    cfg = build_config(own, IDS)
    expected = model_zoo.get_config("prw/r50_fpn.yaml")
    assert cfg.SOLVER.MAX_ITER == 7 != expected.SOLVER.MAX_ITER
    assert cfg.SOLVER.BASE_LR == expected.SOLVER.BASE_LR  # of Base-PersonSearch-FPN.yaml
    assert cfg.DATASETS.TRAIN == expected.DATASETS.TRAIN  # of Base-prw.yaml


def test_bases_of_a_project_and_of_own_files_are_merged_in_order(tmp_path):
    (tmp_path / "first.yaml").write_text("SOLVER: {MAX_ITER: 5, BASE_LR: 0.5}\n")
    own = own_config(tmp_path, ["first.yaml", f"kd_search://{STUDENT}"], OUTPUT_DIR="o")
    cfg, expected = get_cfg(), model_zoo.get_config(STUDENT)
    merge_config_file(cfg, own)
    assert cfg.OUTPUT_DIR == "o"
    assert cfg.SOLVER.MAX_ITER == expected.SOLVER.MAX_ITER != 5  # the later base wins
    assert list(cfg.DISTILLATION.TERMS) == list(expected.DISTILLATION.TERMS)


@pytest.mark.parametrize("name", ["prw/r50_fpn.yaml", "kd_search://prw/r50_fpn.yaml"])
def test_the_command_line_takes_a_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    options = ["--config-file", name, "OUTPUT_DIR", "out", "MODEL.DEVICE", "cpu", *IDS]
    cfg = setup(default_argument_parser().parse_args(options))
    assert cfg.DATASETS.TRAIN == ("prw_train",)
    assert (tmp_path / "out/config.yaml").is_file()


def test_a_file_of_the_user_wins_over_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prw").mkdir()
    (tmp_path / "prw/r50_fpn.yaml").write_text("SOLVER: {MAX_ITER: 3}\n")
    assert build_config("prw/r50_fpn.yaml").SOLVER.MAX_ITER == 3
    assert build_config("kd_search://prw/r50_fpn.yaml", IDS).SOLVER.MAX_ITER != 3


def teacher(**values):
    node = CfgNode({"CONFIG_FILE": "", "OPTS": [], "WEIGHTS": "", **values})
    return read_teacher_config(get_cfg(), node, "DISTILLATION.TEACHER")


def test_a_teacher_takes_a_name_and_an_own_config_with_a_shipped_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = model_zoo.get_config("prw/r50_fpn.yaml")
    # The shipped students name their teachers by the path in the repository.
    own = own_config(tmp_path, "kd_search://prw/r50_fpn.yaml")
    for name in ("prw/r50_fpn.yaml", "configs/prw/r50_fpn.yaml", own):
        assert teacher(CONFIG_FILE=name).MODEL.RESNETS == expected.MODEL.RESNETS


@pytest.mark.parametrize(
    "read",
    [
        lambda folder, name: build_config(name),
        lambda folder, name: build_config(f"kd_search://{name}"),
        lambda folder, name: build_config(own_config(folder, f"kd_search://{name}")),
        lambda folder, name: teacher(CONFIG_FILE=name),
        lambda folder, name: model_zoo.get_config(name),
        lambda folder, name: setup(
            argparse.Namespace(config_file=name, opts=[], eval_only=False, resume=False)
        ),
    ],
)
def test_a_name_that_does_not_exist_is_one_line_with_the_closest(tmp_path, read):
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path, "prw/r50_fpm.yaml")
    message = str(caught.value)
    assert "prw/r50_fpm.yaml" in message and "prw/r50_fpn.yaml" in message
    assert "\n" not in message


def test_errors_of_a_teacher_name_its_key(tmp_path):
    own = own_config(tmp_path, "kd_search://prw/r50_fpn.yaml", MODEL={"WEIGHT": "x"})
    for values, words in (
        ({"CONFIG_FILE": "mine/no.yaml"}, ["TEACHER.CONFIG_FILE", "mine/no.yaml"]),
        ({"CONFIG_FILE": own}, ["TEACHER.CONFIG_FILE", "own.yaml", "MODEL.WEIGHTS"]),
        (
            {"CONFIG_FILE": "prw/r50_fpn.yaml", "OPTS": ["MODEL.WEIGHT", "x"]},
            ["TEACHER.OPTS", "MODEL.WEIGHT x", "MODEL.WEIGHTS"],
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            teacher(**values)
        assert all(word in str(caught.value) for word in words)
        assert "\n" not in str(caught.value)


def test_no_code_of_a_teachers_config_runs(tmp_path):
    (tmp_path / "t.yaml").write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir [{tmp_path}/x]\n")
    with pytest.raises(ValueError, match="not plain YAML.*os.mkdir"):
        teacher(CONFIG_FILE=str(tmp_path / "t.yaml"))
    assert not (tmp_path / "x").exists()


def test_bases_in_a_circle_and_files_of_another_version_are_one_line(tmp_path):
    (tmp_path / "b.yaml").write_text("_BASE_: own.yaml\n")
    with pytest.raises(ValueError, match="own.yaml.*_BASE_"):
        build_config(own_config(tmp_path, "b.yaml"))
    (tmp_path / "old.yaml").write_text("VERSION: 1\n")
    with pytest.raises(ValueError, match="old.yaml.*VERSION"):
        build_config(str(tmp_path / "old.yaml"))


def test_the_configs_inside_of_a_package_are_preferred(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "kd_search")
    assert shipped.shipped_root() == tmp_path
    (tmp_path / "kd_search/model_zoo/configs").mkdir(parents=True)
    assert shipped.shipped_root() == tmp_path / "kd_search/model_zoo"
