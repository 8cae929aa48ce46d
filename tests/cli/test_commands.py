"""Every command of kd-search: what its help costs, and that tools/ are the same commands."""

import importlib
import json
import logging
import os
import re
import subprocess
import sys

import pytest
from tiny import REPO

from kd_search import cli, synthetic
from kd_search.cli import convert, doctor, evaluate, generate, train
from kd_search.engine import argument_parser
from kd_search.evaluation import CAMERAS, MODES
from kd_search.evaluation.search import import_arrays, protocol

HEAVY = ("torch", "torchvision", "detectron2", "matplotlib", "cv2", "numpy", "scipy", "pydantic")
TOOLS = {
    **{"train_net": "train", "plot_results": "plot", "visualize_search": "show"},
    **{"check_dataset": "check", "convert_dataset": "convert", "generate_dataset": "generate"},
    **{"export_model": "export", "build_id_table": "table", "loss_gradients": "gradients"},
    **{"compare_runs": "compare", "check_environment": "doctor", "evaluate": "evaluate"},
    **{"install_detectron2": "install-detectron2", "search": "search"},
}
# Runs the command in the process that counts its modules and its processor time.
CODE = """
import json, resource, sys
from kd_search.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 0
loaded = sorted({name.partition(".")[0] for name in sys.modules})
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([loaded, used.ru_utime + used.ru_stime]), file=open(sys.argv[-1], "w"))
"""


def python(*argv, **options):
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, *map(str, argv)], env=env, capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_loads_nothing_heavy_and_warns_of_nothing(command, tmp_path):
    done = python("-c", CODE, command, "--help", tmp_path / "used.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: kd-search {command}")
    loaded, seconds = json.loads((tmp_path / "used.json").read_text())
    assert set(HEAVY).isdisjoint(loaded)
    assert seconds < 1


def test_the_module_and_the_tools_are_the_commands(tmp_path):
    for name, command in TOOLS.items():
        done = python(REPO / "tools" / f"{name}.py", "--help", cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", (name, done.stderr)
        assert done.stdout.startswith(f"usage: kd-search {command}")
    done = python("-m", "kd_search", "compare", "--help", cwd=tmp_path)
    assert done.stdout.startswith("usage: kd-search compare")


def test_usage_names_every_command():
    done = python("-m", "kd_search")
    assert done.returncode == 2 and done.stderr == ""
    for command, (_, what) in cli.COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(what)}$", done.stdout, re.M)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_options_have_one_name_in_all_commands(command):
    module = importlib.import_module(f"kd_search.cli.{cli.COMMANDS[command][0]}")
    shown = module.get_parser().format_help()
    for other in ("--checkpoint", "--json-report", "--out ", "--config "):
        assert other not in shown


def test_a_command_that_is_not_there_is_one_line(capsys):
    assert cli.main(["serach"]) == 2
    assert capsys.readouterr().err == (
        "kd-search: there is no command serach, did you mean search?\n"
    )


def test_notes_of_torch_about_compilers_are_left_out(caplog):
    cli.main(["compare", "absent", "absent"])
    torch_logger = logging.getLogger("torch.utils.cpp_extension")
    caplog.clear()
    torch_logger.warning("No CUDA runtime is found, using CUDA_HOME='/usr/local/cuda'")
    torch_logger.warning("another one")
    assert caplog.messages == ["another one"]


def test_choices_of_parsers_are_those_of_the_library():
    assert evaluate.BOX_FORMATS == import_arrays.BOX_FORMATS
    assert (evaluate.CAMERAS, evaluate.MODES) == (CAMERAS, MODES)
    assert evaluate.SIMILARITIES == protocol.SIMILARITIES
    for presets in (synthetic.PRESETS, synthetic.OBJECTS_PRESETS, synthetic.TRACKLETS_PRESETS):
        assert sorted(presets) == sorted(generate.PRESETS)
    for name in convert.WRITERS.values():
        importlib.import_module("kd_search.data.writers")
        assert callable(getattr(sys.modules["kd_search.data.writers"], name))


def test_train_takes_what_a_train_net_takes():
    argv = [
        "--config-file",
        "a.yaml",
        "--resume",
        "--num-gpus",
        "2",
        "--import",
        "mine",
        "A.B",
        "1",
    ]
    for words in ([], argv):
        theirs = vars(argument_parser().parse_args(words))
        assert vars(train.get_parser().parse_args(words)) == theirs


def test_doctor_knows_what_was_tested():
    pins = doctor.read_pins(REPO / "requirements-dev.txt")
    assert {name: pins.get(name, version) for name, version in doctor.TESTED.items()} == (
        doctor.TESTED
    )
    assert {"torch", "numpy", "pydantic"} <= doctor.TESTED.keys()


def test_doctor_names_what_is_missing_or_broken_and_what_to_do(monkeypatch, capsys, tmp_path):
    versions = {**doctor.TESTED, "torch": "2.6.0+cpu"}
    versions.pop("detectron2")
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    (tmp_path / "prw").mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(doctor.importlib, "import_module", _no_cv2)
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^! detectron2 +missing: kd-search install-detectron2$", printed, re.M)
    assert re.search(
        r"^  torch +2\.6\.0\+cpu, tested with " + doctor.TESTED["torch"], printed, re.M
    )
    assert re.search(r"^! cv2 .*: libGL\.so\.1", printed, re.M)
    assert re.search(rf"^  PRW +{re.escape(str(tmp_path / 'prw'))}$", printed, re.M)
    assert re.search(r"^  not found .*CUHK-SYSU", printed, re.M)


def _no_cv2(name):
    if name == "cv2":
        raise ImportError("libGL.so.1: cannot open shared object file")


@pytest.mark.parametrize("tool", ["check_environment", "install_detectron2"])
def test_the_set_up_needs_the_standard_library_alone(tool, tmp_path):
    """The Makefile runs these tools before anything, kd_search included, is installed."""
    done = subprocess.run(
        [sys.executable, "-S", REPO / "tools" / f"{tool}.py", "--help"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_works_where_nothing_is_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", "-m", "kd_search", "doctor"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPO), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^! torch +missing: pip install torch$", done.stdout, re.M)
