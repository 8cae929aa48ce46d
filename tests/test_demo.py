"""The demo on a tiny set: run, killed and run again, and the files that it writes.

It is the pipeline of ``kd-search distill``, whose options are tested on the same folder.
"""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import torch
import yaml
from tiny_demo import demo_command, tiny_demo
from without_onnx import without_onnx

from kd_search.cli import main
from kd_search.experiments import read_study, unpack_queries
from kd_search.export import load_exported
from kd_search.runtime import PersonSearcher
from kd_search.runtime.manifest import read_manifest
from kd_search.utils.files import read_json, write_json
from tests import forked
from tests.forked import Forked

pytestmark = pytest.mark.e2e
MODELS = ("teacher", "student", "student_distilled")
TIMED = ("latency_ms", "latency_quartiles_ms")


def without_export(folder) -> dict:
    return without_onnx(folder.parent / "hidden", {**os.environ, "OMP_NUM_THREADS": "1"})


def interrupt(folder, line: str, sent: int, after: float) -> int:
    """Send a signal some seconds after a line was printed; the exit status."""
    output = folder.with_name("output")
    output.write_text("")
    environment = without_export(folder)
    command, errors = demo_command(folder), subprocess.STDOUT
    process = Forked(command, stdout=output, stderr=errors, cwd=folder.parent, env=environment)
    while process.poll() is None and line not in output.read_text():
        time.sleep(0.05)
    time.sleep(after)
    process.send_signal(sent)
    return process.wait(120)


def numbers(folder) -> dict:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {m: {k: v for k, v in metrics[m].items() if k not in TIMED} for m in MODELS}


@pytest.fixture(scope="module")
def straight():
    """Folder and output of a run without interruption."""
    return tiny_demo()


def test_metrics_file_has_the_documented_keys(straight):
    folder, output = straight
    metrics = json.loads((folder / "metrics.json").read_text())
    for model in MODELS:
        assert set(metrics[model]) == {
            *("mAP", "top1", "top5", "top10", "det_AP", "det_recall"),
            *("params", *TIMED),
        }
        first, third = metrics[model]["latency_quartiles_ms"]
        assert 0 < first <= metrics[model]["latency_ms"] <= third
        for key in ("mAP", "top1", "top5", "top10", "det_AP", "det_recall"):
            assert 0 <= metrics[model][key] <= 100
    assert metrics["student"]["params"] == metrics["student_distilled"]["params"]
    assert metrics["seed"] == 1 and "torch" in metrics["versions"]
    assert set(metrics["seconds"]) >= {"data", "teacher", "table", "student", "evaluate", "export"}
    assert set(metrics["seconds"]) >= {"calibrate", "report"}
    for task in range(1, 14):
        assert f"[{task}/13]" in output
    assert "left, 67 % of all trainings, 6 of 6" in output


def test_logs_go_to_files_and_not_to_the_console(straight):
    folder, output = straight
    assert "eta:" not in output and "PersonSearchRCNN(" not in output
    for model in MODELS:
        log = (folder / model / "log.txt").read_text()
        assert "eta:" in log and "PersonSearchRCNN(" in log and "protocols of demo_test" in log
    assert "loss_id_table" in (folder / "student_distilled" / "log.txt").read_text()
    assert "loss_id_table" in (folder / "log.txt").read_text()
    # A line when a step starts, and one when it ends; three of a training's progress at most.
    assert 26 <= len(output.splitlines()) <= 60


def test_the_student_is_exported_with_a_manifest(straight):
    folder, output = straight
    manifest = read_manifest(folder / "student_distilled.onnx.json")
    assert manifest["parity"]["pictures"] == 18 and manifest["training_sets"] == ["demo_train"]
    assert manifest["calibration"] is None
    searcher = PersonSearcher.load(folder / "student_distilled.onnx")
    picture = next((folder / "data/test/images").iterdir())
    assert searcher.embed(str(picture), [[0, 0, 20, 40]]).shape == (1, manifest["embedding_dim"])
    record = read_json(folder / "export.json")
    assert record["files"] == {
        "onnx": "student_distilled.onnx",
        "torchscript": "student_distilled.ts",
    }
    assert load_exported(folder / "student_distilled.ts").metadata["embedding_dim"]
    # So short a training finds hardly anybody: the report says that there is no calibration.
    reason = read_json(folder / "calibration.json")["reason"]
    assert reason in output and "student_distilled.onnx" in (folder / "report.html").read_text()
    assert html.escape(reason) in (folder / "report.html").read_text()


def test_comparisons_have_intervals_and_p_values(straight):
    folder, output = straight
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["comparisons"]
    pairs = [(one["baseline"], one["model"]) for one in found]
    assert pairs[0] == ("Plain student", "Distilled student")
    assert ("Teacher", "Distilled student") in pairs
    for one in found:
        interval = one["difference"]
        assert interval["low"] <= interval["mean"] <= interval["high"]
        assert 0 < one["p_value"] <= 1 and one["num_queries"] == 8
    by_model = {one["model"]: one["mean_b"] for one in found}
    assert by_model["Distilled student"] == pytest.approx(metrics["student_distilled"]["mAP"])
    assert "8 queries" in output


def test_report_is_valid_html_and_self_contained(straight):
    folder, _ = straight
    text = (folder / "report.html").read_text()
    HTMLParser().feed(text)
    assert "http://" not in text and "https://" not in text
    assert text.count("data:image/") >= 4


def again(folder, *words) -> int:
    """Exit status of the same command in this process."""
    return main(["demo", "--preset", "tiny", "--output", str(folder), *words])


def test_a_second_run_repeats_no_step(straight, capsys):
    folder, _ = straight
    before = numbers(folder)
    assert again(folder) == 0
    assert capsys.readouterr().out.count("done before") == 13
    assert numbers(folder) == before


def test_interrupted_runs_resume_and_end_with_the_same_numbers(straight, tmp_path):
    folder = tmp_path / "interrupted"
    assert interrupt(folder, "[3/13]", signal.SIGINT, 1.0) == 130
    assert interrupt(folder, "[5/13]", signal.SIGKILL, 1.0) == -signal.SIGKILL
    done = forked.run(demo_command(folder), cwd=folder.parent, env=without_export(folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    output = done.stdout
    assert numbers(folder) == numbers(straight[0])
    # Without the packages of the export the rest is done, and the next call makes the file.
    assert "no student_distilled.onnx: onnx not installed" in output and "[export]" in output
    assert sorted(path.name for path in folder.glob("student_distilled.*")) == [
        "student_distilled.ts"
    ]
    assert "[export]" in (folder / "report.html").read_text()


def test_other_settings_are_refused(straight, capsys):
    folder, _ = straight
    assert again(folder, "--seed", "7") == 2
    error = capsys.readouterr().err
    assert "--output" in error and "Traceback" not in error


def test_without_opencv_the_demo_says_what_to_install(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("kd_search.synthetic")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["demo", "--preset", "tiny", "--output", str(tmp_path / "demo")]) == 2
    error = capsys.readouterr().err
    assert "pip install opencv-python-headless" in error and "[1/13]" in error


# kd-search distill on a copy of the folder -------------------------------------------------------


@pytest.fixture
def project(straight, tmp_path):
    """A copy: paths of results count from the folder, those of data are of the original."""
    return shutil.copytree(straight[0], tmp_path / "copy")


def plan(capsys, *words) -> dict[str, str]:
    """State of the tasks by description, of --dry-run."""
    assert main(["distill", "--dry-run", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    tasks = [line.split("] ", 1)[1] for line in lines if line.startswith("[")]
    return {task.split(":")[0].split(None, 1)[1]: task.split(": ", 1)[1] for task in tasks}


def weights(folder) -> dict:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_a_folder_that_was_moved_is_still_done(project, capsys):
    states = plan(capsys, project)
    assert len(states) == 13 and set(states.values()) == {"done"}


def test_the_export_is_made_anew_with_the_packages_and_stays_without(project, capsys, monkeypatch):
    export = "export the distilled student and check the export"
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert plan(capsys, project)[export] == "done"
    record = project / "steps" / "task_export.json"
    content = read_json(record, sealed=True)
    content["settings"]["formats"] = "torchscript"
    write_json(record, content, sealed=True)
    (project / "export.json").write_text(
        json.dumps({"files": {"torchscript": "student_distilled.ts"}, "left_out": {}})
    )
    assert plan(capsys, project)[export] == "done"
    monkeypatch.undo()
    assert "formats was torchscript, is onnx" in plan(capsys, project)[export]


def test_a_project_of_an_older_version_gets_what_is_new_alone(project, capsys):
    for name in ("export.json", "calibration.json", "steps/task_calibrate.json"):
        (project / name).unlink()
    path = project / "steps" / "task_export.json"
    record = read_json(path, sealed=True)
    write_json(path, {**record, "settings": {}}, sealed=True)
    states = plan(capsys, project)
    new = {name for name, state in states.items() if state != "done"}
    assert new == {
        "export the distilled student and check the export",
        "find the similarities to trust",
        "write metrics.json and report.html",
    }


def test_a_missing_export_is_made_again(project, capsys):
    (project / "student_distilled.onnx").unlink()
    states = plan(capsys, project)
    assert (
        "student_distilled.onnx is missing"
        in states["export the distilled student and check the export"]
    )


def test_a_change_of_the_test_repeats_the_evaluation_alone(project, capsys):
    states = plan(capsys, project, "TEST.PERSON_SEARCH.SCORE_THRESH", "0.4")
    assert "SCORE_THRESH was 0.5, is 0.4" in states["evaluate student"]
    assert states["compare the networks query by query"].startswith("changed")
    done = [name for name, state in states.items() if state == "done"]
    assert len(done) == 7 and "train the teacher" in done


def test_a_change_of_one_config_repeats_what_depends_on_it(project, capsys):
    path = project / "configs" / "teacher.yaml"
    content = yaml.safe_load(path.read_text())
    content["SOLVER"] = {"WEIGHT_DECAY": 0.02}
    path.write_text(yaml.safe_dump(content))
    states = plan(capsys, project)
    assert "WEIGHT_DECAY was 0.01, is 0.02" in states["train the teacher"]
    assert states["train the student with the teacher"].startswith("changed")
    assert states["train the student without the teacher"] == "done"
    assert states["evaluate student"] == "done"


def test_one_step_alone_keeps_the_earlier_run(project, capsys):
    before = weights(project / "student")
    opts = ["SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.BASE_LR", "0.1"]
    assert main(["distill", str(project), "--only", "student", *opts]) == 0
    assert "ran student" in capsys.readouterr().out
    after, kept = weights(project / "student"), weights(project / "student.old1")
    assert all(torch.equal(before[key], kept[key]) for key in before)
    assert not all(torch.equal(before[key], after[key]) for key in before)
    assert main(["distill", str(project), "--only", "compare", *opts]) == 2
    assert "--only compare needs evaluate.teacher" in capsys.readouterr().err


def test_other_terms_and_several_seeds(project, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    words = ["distill", str(project), "--terms", "HintTerm", "--seeds", "1", "2"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "train the teacher: done before" in output
    assert "without the teacher, seed 1: done before" in output
    assert "By seed:" in output and "(seed 2)" in output
    metrics = json.loads((project / "metrics.json").read_text())
    assert metrics["terms"] == ["HintTerm"]
    assert metrics["seeds"]["student"].keys() == {"1", "2"}
    pair = metrics["comparisons"][0]
    assert pair["by_seed"].keys() == {"1", "2"}
    for seed, folder in (("1", project), ("2", project / "seed2")):
        found = metrics["seeds"]["student_distilled"][seed]["mAP"]
        assert pair["by_seed"][seed]["mean_b"] == pytest.approx(found)
        cfg = yaml.safe_load((folder / "student_HintTerm" / "config.yaml").read_text())
        assert cfg["SEED"] == int(seed) and cfg["MODEL"]["OIM"]["ENABLED"]
        assert cfg["DISTILLATION"]["TEACHER"]["WEIGHTS"].startswith(str(project))
    # The run with the table is still there.
    assert (project / "student_distilled" / "model_final.pth").exists()
    assert not list(project.glob("*.old*"))


def test_the_results_file_has_what_was_measured_and_where(straight, tmp_path):
    folder, file = straight[0], tmp_path / "demo.json"
    assert main(["results", "--from-project", str(folder), "--output", str(file)]) == 0
    study, metrics = read_study(file), json.loads((folder / "metrics.json").read_text())
    assert study.command == "kd-search demo --preset tiny --seed 1"
    found = {run.row: run for run in study.runs} | study.teachers
    names = ("teacher", "student", "student with IDTableTerm")
    for name, model in zip(names, MODELS):
        run = found[name]
        for key in ("mAP", "top1", "top10", "det_AP", "det_recall"):
            assert run.metrics[key] == pytest.approx(metrics[model][key])
        ap = unpack_queries(run.per_query["mAP"])
        assert len(ap) == 8 and ap.mean() == pytest.approx(run.metrics["mAP"], abs=0.01)
        assert run.iterations == 6 and run.params == metrics[model]["params"] and run.seconds
    (environment,) = study.environments
    assert environment.versions["torch"] == torch.__version__ and environment.hardware["cores"]
    assert set(environment.data) == {"demo_train", "demo_test"}
    # Of one seed there is an interval over queries alone.
    entry = next(e for e in study.table() if e["row"] == names[2])
    gain = entry["metrics"]["mAP"]["gain"]
    assert gain["over_queries"] and gain["over_seeds"] is None


def test_results_of_another_config_or_an_unfinished_project_are_refused(project, tmp_path, capsys):
    words = ["results", "--from-project", str(project), "--output", str(tmp_path / "x.json")]
    path = project / "configs" / "student.yaml"
    other = "SOLVER: {WEIGHT_DECAY: 0.5}\nOUTPUT_DIR"
    path.write_text(path.read_text().replace("OUTPUT_DIR", other))
    assert main(words) == 2
    assert "student is changed" in capsys.readouterr().err
    (project / "metrics.json").unlink()
    assert main(words) == 2
    assert "metrics.json" in capsys.readouterr().err and not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--terms", "IdentityProbabilityTerm"], "DISTILLATION.REID_TEACHER.CONFIG_FILE"),
        (["--terms", "HindTerm"], "HindTerm is none of"),
        (["--only", "pupil"], "--only pupil"),
        (["SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITER?"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER", "3", "--dry-run"], "--dry-run"),
    ],
)
def test_wrong_options_of_distill_are_one_line(straight, capsys, words, named):
    before = sorted(os.listdir(straight[0]))
    assert main(["distill", str(straight[0]), *words]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error
    assert sorted(os.listdir(straight[0])) == before


def test_a_folder_that_is_no_project_is_one_line(tmp_path, capsys):
    assert main(["distill", str(tmp_path)]) == 2
    assert f"kd-search init {tmp_path}" in capsys.readouterr().err


def test_a_project_of_plain_files_as_a_process(straight, tmp_path, capsys):
    data = straight[0] / "data"
    command = [sys.executable, "-m", "kd_search"]
    options = ["--train", data / "train.json", "--images", data / "train/images"]
    options += ["--test", data / "test.json", "--test-images", data / "test/images"]
    options += ["--queries", data / "query_info.txt"]
    words = ["init", "shop", *map(str, options)]
    made = forked.run([*command, *words], cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "people are" in made.stdout and "kd-search distill shop" in made.stdout
    states = plan(capsys, tmp_path / "shop")
    assert states["check the data"] == "done" and states["evaluate student"] == "to do"
    assert sorted(os.listdir(tmp_path / "shop")) == ["configs", "project.yaml", "steps"]
