"""Configs from the command line, and errors that fit in one line."""

import argparse

import pytest
import yaml
from detectron2.engine import default_argument_parser

from kd_search.data import ImageError
from kd_search.engine import build_config, launch, setup

#: Only a network that tells people apart needs their number.
PEOPLE = ["MODEL.META_ARCHITECTURE", "PersonSearchRCNN"]


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def identities(monkeypatch):
    monkeypatch.setattr("kd_search.engine.defaults.get_id_map", lambda names: range(17))


def test_file_and_overrides_are_merged_and_identities_counted(tmp_path, identities):
    base = write(tmp_path / "base.yaml", {"SOLVER": {"BASE_LR": 0.5, "MAX_ITER": 9}})
    leaf = write(tmp_path / "leaf.yaml", {"_BASE_": "base.yaml", "SOLVER": {"MAX_ITER": 7}})
    cfg = build_config(leaf, ["MODEL.REID_HEAD.EMBEDDING_DIM", "64", *PEOPLE])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.5, 7)
    assert cfg.MODEL.REID_HEAD.EMBEDDING_DIM == 64 and cfg.MODEL.OIM.NUM_IDS == 17
    assert cfg.is_frozen()
    assert build_config(base, ["MODEL.OIM.NUM_IDS", "5532"]).MODEL.OIM.NUM_IDS == 5532


@pytest.mark.parametrize(
    "content, words",
    [
        (
            {"SOLVER": {"BASE_LE": 1.0}},
            "there is no key SOLVER.BASE_LE, did you mean SOLVER.BASE_L",
        ),
        ({"SOLVER": {"MAX_ITER": "many"}}, "SOLVER.MAX_ITER"),
        ({"_BASE_": "nowhere.yaml"}, "nowhere.yaml"),
        ("SOLVER: [1, 2", "is not plain YAML.*line 1"),
        ("SOLVER: !!python/object/apply:os.mkdir [here]", "is not plain YAML"),
        ("just words", "bad.yaml"),
    ],
)
def test_what_is_wrong_with_a_config_file_is_said_with_its_name(tmp_path, content, words):
    path = write(tmp_path / "bad.yaml", content)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        build_config(path)
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "opts, words",
    [
        (
            ["SOLVER.MAX_ITERS", "3"],
            "there is no key SOLVER.MAX_ITERS, did you mean SOLVER.MAX_ITER",
        ),
        (["SOLVER.MAX_ITER", "many"], "override SOLVER.MAX_ITER many: .*[Tt]ype"),
        (["SOLVER.MAX_ITER"], "pairs KEY VALUE"),
    ],
)
def test_what_is_wrong_with_an_override_is_said(opts, words):
    with pytest.raises(ValueError, match=words):
        build_config("", opts)


def test_absent_config_file_is_named():
    with pytest.raises(FileNotFoundError, match="config file nowhere.yaml does not exist"):
        build_config("nowhere.yaml")


def test_evaluation_builds_the_plain_student_and_needs_no_training_set():
    opts = ["MODEL.META_ARCHITECTURE", "Distiller", "DATASETS.TRAIN", "('not_there',)"]
    cfg = build_config("", opts, eval_only=True)
    assert cfg.MODEL.META_ARCHITECTURE == "PersonSearchRCNN" and cfg.MODEL.OIM.NUM_IDS == 1
    with pytest.raises(ValueError, match="not_there"):
        build_config("", opts)


def test_training_set_without_identities_is_refused(monkeypatch):
    monkeypatch.setattr("kd_search.engine.defaults.get_id_map", lambda names: [])
    with pytest.raises(ValueError, match="no person with an identity"):
        build_config("", PEOPLE)


def test_evaluation_of_nothing_is_refused(tmp_path, identities):
    arguments = ["--eval-only", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ValueError, match="--eval-only has nothing to evaluate"):
        setup(default_argument_parser().parse_args(arguments))


def alone(**kwargs):
    return argparse.Namespace(num_gpus=1, num_machines=1, **kwargs)


def test_launch_returns_what_main_returns():
    assert launch(lambda args: args.x + 1, alone(x=1)) == 2


def test_launch_tells_bad_input_in_one_line_and_exits_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        launch(lambda args: build_config("nowhere.yaml"), alone())
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: config file nowhere.yaml does not exist\n"


def test_launch_tells_the_error_of_a_loader_worker_in_one_line(capsys):
    def main(args):
        # What torch makes of it when it arrives from a worker.
        raise ImageError(
            "Caught ImageError in worker 0.\nTraceback:\n  line\nImageError: a.jpg is torn"
        )

    with pytest.raises(SystemExit):
        launch(main, alone())
    assert capsys.readouterr().err == "error: ImageError: a.jpg is torn\n"


def test_launch_hides_no_bug():
    with pytest.raises(ValueError, match="invalid literal"):
        launch(lambda args: int("x"), alone())


def test_launch_turns_ctrl_c_into_a_failed_exit_status():
    def interrupted(args):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        launch(interrupted, alone())
    assert caught.value.code == 130
