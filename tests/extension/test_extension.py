"""A package from outside trains in one and two processes, resumes, evaluates and is exported."""

import os
import shutil
import sys
from pathlib import Path

import include_code
import pytest
import torch

from kd_search.export import load_exported
from tests import forked

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
SOURCES = ("mine", "configs", "train_net.py")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the package with its data set, a trained teacher and a re-ID teacher."""
    root = tmp_path_factory.mktemp("mine")
    for name in SOURCES:
        source = HERE / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    make = (
        "import mine.data, torch; mine.data.write()\n"
        "from detectron2.modeling import build_model\n"
        "from kd_search.config import get_cfg\n"
        "cfg = get_cfg(); cfg.merge_from_file('configs/reid_teacher.yaml')\n"
        "cfg.MODEL.REID_NETWORK.NUM_IDS = 4; torch.manual_seed(0)\n"
        "torch.save({'model': build_model(cfg).state_dict()}, 'reid.pth')\n"
    )
    run(root, "-c", make)
    run(root, "train_net.py", "--config-file", "configs/Base-mine.yaml", "OUTPUT_DIR", "teacher")
    return root


def run(root, *command, ok=True, start=forked.run):
    paths = [str(REPO), str(root)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MINE_DATA": str(root / "data")}
    result = start([sys.executable, *map(str, command)], cwd=root, env=env)
    assert (result.returncode == 0) == ok, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def train(root, config, folder, *options, start=forked.run):
    config_file = f"configs/{config}.yaml"
    weights = (
        *("DISTILLATION.TEACHER.WEIGHTS", "teacher/model_final.pth"),
        *("DISTILLATION.REID_TEACHER.WEIGHTS", "reid.pth"),
    )
    command = ("train_net.py", "--config-file", config_file, *options, "OUTPUT_DIR", folder)
    run(root, *command, *weights, start=start)
    return load(root / folder / "model_final.pth")


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def cascade(project):
    return train(project, "cascade_student", "cascade")


def test_train_net_is_as_short_as_promised():
    assert len((HERE / "train_net.py").read_text().splitlines()) <= 15


def test_a_cascade_learns_from_hints(cascade):
    assert {name.split(".")[0] for name in cascade["terms"]} == {"HintTerm", "CentredHintTerm"}
    assert any(name.startswith("roi_heads.box_predictor.2.") for name in cascade["model"])
    assert not any("adapter" in name for name in cascade["model"])
    assert cascade["TeacherMean"]["mean"].abs().sum() > 0


def test_a_resumed_run_has_the_same_bits(project, cascade):
    resumed = project / "resumed"
    shutil.copytree(project / "cascade", resumed)
    for name in ("model_final.pth", "model_0000003.pth"):
        (resumed / name).unlink()
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    again = train(project, "cascade_student", "resumed", "--resume")
    for part in ("model", "terms", "TeacherMean"):
        assert again[part].keys() == cascade[part].keys()
        for name, value in cascade[part].items():
            assert torch.equal(again[part][name], value), (part, name)


def test_two_processes_train_and_agree_on_the_data(project):
    # New ranks import the script, and have its networks.
    options = ("--num-gpus", "2")
    both = train(project, "cascade_student", "both", *options, start=forked.new_python)
    assert all(bool(torch.isfinite(value).all()) for value in both["model"].values())
    log = (project / "both" / "log.txt").read_text() + (
        project / "both" / "log.txt.rank1"
    ).read_text()
    assert "Skipped" not in log and both["iteration"] == 3


def test_a_search_student_is_taught_evaluated_and_exported(project):
    taught = train(project, "search_student", "search")
    assert not any("classifier" in name and "embedding." in name for name in taught["model"])
    log = (project / "search" / "metrics.json").read_text()
    assert "loss_pair_relation" in log and "loss_centred_hint" in log
    config = ("--config-file", "configs/search_student.yaml")
    weights = ("MODEL.WEIGHTS", "search/model_final.pth", "OUTPUT_DIR", "evaluated")
    run(project, "train_net.py", *config, "--eval-only", *weights)
    assert (project / "evaluated/inference/mine_test/person_search_results.json").is_file()
    tool = REPO / "tools" / "export_model.py"
    run(
        *(project, tool, "--import", "mine", *config, "--weights", "search/model_final.pth"),
        *("--output", "student.ts"),
    )
    assert load_exported(project / "student.ts").module is not None


def test_a_module_that_is_not_there_is_one_line(project):
    tool = REPO / "tools" / "train_net.py"
    config = ("--config-file", "configs/Base-mine.yaml")
    text = run(project, tool, "--import", "theirs", *config, ok=False)
    assert "error: --import theirs" in text and "Traceback" not in text


def test_a_setting_of_the_package_that_does_not_fit_is_one_line(project):
    config = ("--config-file", "configs/cascade_student.yaml", "OUTPUT_DIR", "refused")
    weights = ("DISTILLATION.TEACHER.WEIGHTS", "teacher/model_final.pth")
    feature = ("DISTILLATION.CENTRED_HINT.FEATURE", "p9")
    text = run(project, "train_net.py", *config, *weights, *feature, ok=False)
    assert "error: DISTILLATION.CENTRED_HINT.FEATURE 'p9'" in text and "Traceback" not in text


def test_the_documentation_shows_this_code():
    for page, blocks in (("docs/adding_a_method.md", 4), ("README.md", 1)):
        text = (REPO / page).read_text()
        assert text.count("<!-- include: tests/extension/") == blocks
        assert include_code.filled(text) == text
