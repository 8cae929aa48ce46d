"""Configs from the command line, and errors that fit in one line."""

import argparse
import importlib.util
import json

import pytest
import yaml
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger

from kd_search.data import ImageError
from kd_search.engine import build_config, launch, setup
from kd_search.utils import folder_lock
from tests.engine.toy import ToyTrainer, toy_cfg

#: Only a network with a re-ID branch needs the number of identities.
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
    "content, message",
    [
        ({"SOLVER": {"BASE_LE": 1.0}}, "SOLVER.BASE_LE.*SOLVER.BASE_L"),
        ({"SOLVER": {"MAX_ITER": "many"}}, "SOLVER.MAX_ITER"),
        ({"_BASE_": "nowhere.yaml"}, "nowhere.yaml"),
        ("SOLVER: [1, 2", "YAML.*line 1"),
        ("SOLVER: !!python/object/apply:os.mkdir [here]", "YAML.*os.mkdir"),
        ("just words", "bad.yaml"),
    ],
)
def test_errors_of_a_config_file_name_it(tmp_path, content, message):
    path = write(tmp_path / "bad.yaml", content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        build_config(path)
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.MAX_ITERS", "3"], r"SOLVER.MAX_ITERS\b.*SOLVER.MAX_ITER\b"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER many: .*[Tt]ype"),
        (["SOLVER.MAX_ITER"], "KEY VALUE.* SOLVER.MAX_ITER"),
    ],
)
def test_errors_of_an_override_name_it(opts, message):
    with pytest.raises(ValueError, match=message):
        build_config("", opts)


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.BASE_LR", -0.1),
        ("SOLVER.BASE_LR", float("nan")),
        ("SOLVER.BASE_LR", float("inf")),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.MAX_ITER", -5),
        ("SOLVER.MAX_ITER", 2**63),
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.IMS_PER_BATCH", -4),
        ("SOLVER.REFERENCE_WORLD_SIZE", -1),
        ("SOLVER.REFERENCE_WORLD_SIZE", 3),
        ("SOLVER.CHECKPOINT_PERIOD", -1),
        ("SOLVER.CHECKPOINTS_TO_KEEP", -1),
        ("SOLVER.MAX_SKIPPED_STEPS", 0),
        ("SOLVER.STEPS", (0,)),
        ("SOLVER.STEPS", (10, -10)),
        ("SOLVER.STEPS", (20, 10)),
        ("SOLVER.STEPS", (10, 10)),
        ("SOLVER.GAMMA", -0.1),
        ("SOLVER.MOMENTUM", 1.0),
        ("SOLVER.WEIGHT_DECAY", -1.0),
        ("SOLVER.WARMUP_ITERS", -1),
        ("SOLVER.WARMUP_FACTOR", float("nan")),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0),
        ("SEED", 2**63),
        ("SEED", 2**32),
        ("DATALOADER.NUM_WORKERS", -1),
        ("TEST.EVAL_PERIOD", -1),
        ("TEST.PERSON_SEARCH.TOP_K", [1, 0]),
        ("TEST.PERSON_SEARCH.IOU_THRESH", 1.5),
        ("INPUT.MAX_SKIPPED_FRACTION", 2.0),
        ("INPUT.MAX_IMAGE_PIXELS", 0),
        ("MODEL.OIM.TEMPERATURE", 0.0),
        ("MODEL.OIM.QUEUE_SIZE", -1),
        ("MODEL.REID_HEAD.EMBEDDING_DIM", 0),
        ("MODEL.PIXEL_MEAN", [1.0, float("nan"), 1.0]),
        ("OUTPUT_DIR", ""),
        ("OUTPUT_DIR", "a\0b"),
        ("MODEL.WEIGHTS", "half \ud800.pth"),
        ("DATASETS.PERSON_SEARCH_COCO", [["a", "b\0.json", "c"]]),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(tmp_path, key, value):
    node = {}
    leaf = node
    *path, last = key.split(".")
    for part in path:
        leaf = leaf.setdefault(part, {})
    leaf[last] = list(value) if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=f"(^|multiple of ){key} ") as caught:
        build_config(write(tmp_path / "a.yaml", node))
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
    str(caught.value).encode()


def test_values_at_the_ends_of_their_ranges_are_accepted(identities):
    opts = {
        "SOLVER.BASE_LR": 0.0,
        "SOLVER.MAX_ITER": 1,
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.CHECKPOINT_PERIOD": 0,
        "SOLVER.STEPS": (),
        "SOLVER.MOMENTUM": 0.0,
        "SEED": 2**32 - 1,
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.EVAL_PERIOD": 0,
        "TEST.PERSON_SEARCH.IOU_THRESH": 1.0,
    }
    cfg = build_config("", [part for pair in opts.items() for part in pair])
    assert cfg.SEED == 2**32 - 1 and cfg.SOLVER.MAX_ITER == 1
    # Without a training, the keys of training do not matter.
    cfg = build_config("", ["SOLVER.MAX_ITER", 0], eval_only=True)
    assert cfg.SOLVER.MAX_ITER == 0


def test_absent_config_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        build_config("nowhere.yaml")


def test_evaluation_builds_the_plain_student_and_needs_no_training_set():
    opts = ["MODEL.META_ARCHITECTURE", "Distiller", "DATASETS.TRAIN", "('not_there',)"]
    cfg = build_config("", opts, eval_only=True)
    assert cfg.MODEL.META_ARCHITECTURE == "PersonSearchRCNN" and cfg.MODEL.OIM.NUM_IDS == 1
    with pytest.raises(ValueError, match="not_there"):
        build_config("", opts)


def test_training_set_without_identities_is_refused(monkeypatch):
    monkeypatch.setattr("kd_search.engine.defaults.get_id_map", lambda names: [])
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        build_config("", PEOPLE)


def test_evaluation_of_nothing_is_refused(tmp_path, identities):
    arguments = ["--eval-only", "OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(ValueError, match="--eval-only.*MODEL.WEIGHTS"):
        setup(default_argument_parser().parse_args(arguments))


def setup_of(folder, *flags):
    arguments = [*flags, "OUTPUT_DIR", str(folder), "DATASETS.TEST", "('a', 'b')"]
    return setup(default_argument_parser().parse_args(arguments))


@pytest.fixture
def calm(identities, monkeypatch):
    """Disable everything of ``setup`` but the locks; release all folders afterwards."""
    for name in ("_check_tasks", "_check_classes", "setup_logger", "default_setup"):
        monkeypatch.setattr(f"kd_search.engine.defaults.{name}", lambda *_, **__: None)
    yield
    folder_lock._release_all()


def held(folder):
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob(".lock"))


def test_a_training_holds_its_folder_and_those_of_its_results(tmp_path, calm):
    setup_of(tmp_path)
    assert held(tmp_path) == [".", "inference/a", "inference/b"]


def test_an_evaluation_holds_the_folders_of_its_results_alone(tmp_path, calm):
    setup_of(tmp_path, "--eval-only", "MODEL.WEIGHTS", "x.pth")
    assert held(tmp_path) == ["inference/a", "inference/b"]


@pytest.mark.parametrize("common", [True, False])
def test_an_evaluation_beside_a_training_needs_other_sets(tmp_path, calm, common):
    """The locks are those of a process on another machine."""
    for folder in (tmp_path, tmp_path / "inference" / ("b" if common else "c")):
        folder.mkdir(parents=True, exist_ok=True)
        holder = {"host": "elsewhere", "pid": 12, "started": "2026", "kernel": "k"}
        (folder / ".lock").write_text(json.dumps(holder))
    evaluation = ["--eval-only", "MODEL.WEIGHTS", "x.pth"]
    if common:
        with pytest.raises(folder_lock.FolderInUseError, match="inference/b .* 12 on"):
            setup_of(tmp_path, *evaluation)
        assert not (tmp_path / "inference/a/.lock").exists()
    else:
        setup_of(tmp_path, *evaluation)
        assert held(tmp_path) == [".", "inference/a", "inference/b", "inference/c"]
    with pytest.raises(folder_lock.FolderInUseError, match=f"{tmp_path} .* 12 on"):
        setup_of(tmp_path)


@pytest.mark.parametrize("flags", [(), ("--eval-only", "MODEL.WEIGHTS", "x.pth")])
def test_an_output_folder_that_cannot_be_written_is_named(tmp_path, calm, flags):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"{tmp_path}/file/run"):
        setup_of(tmp_path / "file/run", *flags)


def alone(**kwargs):
    return argparse.Namespace(num_gpus=1, num_machines=1, **kwargs)


def test_launch_returns_what_main_returns():
    assert launch(lambda args: args.x + 1, alone(x=1)) == 2


def module_of(tmp_path, name, body):
    """Import a function ``work`` from a file, as a module of the given name."""
    path = tmp_path / "module.py"
    path.write_text(f"def work(args):\n    {body}\n")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "body",
    [
        'raise ValueError("a.jpg: bad")',
        'raise OSError(\n        "a.jpg: "\n        "bad"\n    )',
        'if args:\n        raise RuntimeError("a.jpg: bad") from None',
        # As torch passes on an error of a loader worker.
        'raise ValueError("in worker 0.\\nTraceback:\\n  line\\na.jpg: bad")',
    ],
)
def test_launch_reports_bad_input_in_one_line_and_exits_with_2(capsys, tmp_path, body):
    work = module_of(tmp_path, "kd_search.made_up", body).work
    with pytest.raises(SystemExit) as caught:
        launch(lambda args: work(args), alone())
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: a.jpg: bad\n"


def test_launch_reports_errors_of_kd_search_wherever_they_are_raised(capsys):
    def main(args):
        raise ImageError("a.jpg: bad")

    with pytest.raises(SystemExit) as caught:
        launch(main, alone())
    assert caught.value.code == 2 and capsys.readouterr().err == "error: a.jpg: bad\n"


@pytest.mark.parametrize(
    "name, body",
    [
        ("kd_search.made_up", 'int("x")'),
        ("kd_search.made_up", "first, second = [1]"),
        ("kd_search.made_up", "import torch; torch.ones(2) + torch.ones(3)"),
        ("kd_search.made_up", 'import json; json.loads("x")'),
        ("elsewhere", 'raise ValueError("x")'),
    ],
)
def test_launch_hides_no_bug(tmp_path, name, body):
    with pytest.raises((ValueError, RuntimeError)):
        launch(module_of(tmp_path, name, body).work, alone())


def test_launch_turns_ctrl_c_into_a_failed_exit_status():
    def interrupted(args):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        launch(interrupted, alone())
    assert caught.value.code == 130


def test_launch_reports_bad_data_in_training_in_one_line(tmp_path, capfd):
    """Neither screen nor log file have Detectron2's traceback."""
    setup_logger(str(tmp_path))

    class BadData(ToyTrainer):
        def run_step(self):
            if self.iter == 1:
                raise ImageError("a.jpg: not an image file")
            super().run_step()

    with pytest.raises(SystemExit):
        launch(lambda args: BadData(toy_cfg(tmp_path)).train(), alone())
    out, err = capfd.readouterr()
    assert err == "error: a.jpg: not an image file\n"
    assert "Traceback" not in out + (tmp_path / "log.txt").read_text()

    class Bug(BadData):
        def run_step(self):
            int("x")

    with pytest.raises(ValueError, match="'x'"):
        launch(lambda args: Bug(toy_cfg(tmp_path)).train(), alone())
    assert "Exception during training" in (tmp_path / "log.txt").read_text()
