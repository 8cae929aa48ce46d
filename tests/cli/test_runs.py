"""Commands take the output folder of a training, from anywhere, with its own data sets."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from tiny import tiny_cfg
from tiny_training_set import PEOPLE, forget, register_people, write_pictures

from kd_search import cli
from kd_search.engine.finished_run import find_run
from kd_search.engine.searcher import CheckpointSearcher

pytestmark = pytest.mark.e2e
SETS = ("own_train", "own_test", "own_other")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A teacher, its table and a distilled student, trained in their folder by relative paths."""
    root = tmp_path_factory.mktemp("project")
    write_pictures(root / "photos", len(PEOPLE))
    register_people("own_train", root / "photos")
    shutil.move(root / "photos" / "own_train.json", root / "people.json")
    (root / "queries.txt").write_text("10 4 6 40 80 0.png\n11 60 10 40 70 0.png\n")
    cfg = tiny_cfg(
        "fpn",
        *("DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_test',)"),
        *("MODEL.OIM.NUM_IDS", 0, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
        *(
            "DATALOADER.NUM_WORKERS",
            0,
            "INPUT.MIN_SIZE_TRAIN",
            "(96,)",
            "INPUT.MAX_SIZE_TRAIN",
            160,
        ),
        *("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160, "TEST.EVAL_PERIOD", 0),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.PERSON_SEARCH.SCORE_THRESH", 0.0),
        *("SEED", 1, "SOLVER.BASE_LR", 0.001),
    )
    cfg.DATASETS.PERSON_SEARCH_COCO = [
        ["own_train", "people.json", "photos"],
        ["own_test", "people.json", "photos", "queries.txt"],
        ["own_other", "people.json", "photos", "queries.txt"],
    ]
    (root / "teacher.yaml").write_text(cfg.dump())
    cfg.MODEL.META_ARCHITECTURE = "Distiller"
    cfg.DISTILLATION.TERMS = ["IDTableTerm"]
    cfg.DISTILLATION.ID_TABLE.PATH = "table.pth"
    (root / "student.yaml").write_text(cfg.dump())
    loggers = [logging.getLogger(name) for name in ("detectron2", "kd_search", "fvcore")]
    handlers = [list(each.handlers) for each in loggers]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for word in ("teacher", "student"):
            config = ("--config-file", f"{word}.yaml")
            assert call("train", *config, "OUTPUT_DIR", word, "TEST.EVAL_PERIOD", 0) == 0
            shutil.rmtree(root / word / "inference", ignore_errors=True)
            if word == "teacher":
                assert call("table", "teacher", "--output", "table.pth") == 0
    # Those that the trainings added write to a stream of this fixture alone.
    for each, before in zip(loggers, handlers):
        each.handlers[:] = before
    yield root
    for name in SETS:
        forget(name)


def call(*argv):
    """Run a command in this process, which has not seen the sets before."""
    for name in SETS:
        forget(name)
    try:
        return cli.main(list(map(str, argv)))
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def student(project, tmp_path):
    """A copy of the student's folder, not evaluated yet."""
    shutil.copytree(project / "student", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def evaluated(student, elsewhere, capsys):
    assert call("evaluate", student) == 0
    capsys.readouterr()
    return student


def test_evaluate_runs_the_network_once_and_then_scores_its_detections(student, elsewhere, capsys):
    config = (student / "config.yaml").read_bytes()
    assert call("evaluate", student) == 0
    results = student / "inference" / "own_test" / "person_search_results.json"
    first = json.loads(results.read_text())
    assert len(first["queries"]) == 2
    # The training's own files are as they were; those of the evaluation are beside its results.
    assert (student / "config.yaml").read_bytes() == config
    assert (
        "META_ARCHITECTURE: PersonSearchRCNN" in (student / "inference" / "config.yaml").read_text()
    )
    before = results.stat().st_mtime_ns
    capsys.readouterr()
    for path in (student, student / "inference", student / "inference" / "own_test"):
        assert call("evaluate", path, "--output", elsewhere / "again") == 0
        assert "own_test, gallery" in capsys.readouterr().out
        again = json.loads((elsewhere / "again" / results.name).read_text())
        assert again["metrics"] == first["metrics"]
    assert results.stat().st_mtime_ns == before
    assert call("evaluate", student, "--weights", student / "model_final.pth") == 0
    assert results.stat().st_mtime_ns > before


def test_an_evaluation_by_train_leaves_the_config_of_a_distilled_training(student, project):
    config = (student / "config.yaml").read_bytes()
    assert b"META_ARCHITECTURE: Distiller" in config
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        weights = ("MODEL.WEIGHTS", student / "model_final.pth", "OUTPUT_DIR", student)
        assert call("train", "--eval-only", "--config-file", "student.yaml", *weights) == 0
    assert (student / "config.yaml").read_bytes() == config
    assert (student / "inference" / "own_test" / "person_search_results.json").is_file()


def test_every_command_takes_every_form_of_a_run(evaluated, project, elsewhere, capsys, caplog):
    forms = [evaluated, evaluated / "inference", evaluated / "inference" / "own_test"]
    for i, run in enumerate(forms):
        assert call("show", run, "--output", f"{i}.png") == 0
        assert (elsewhere / f"{i}.png").is_file()
        assert call("plot", f"mine={run}", "--output", f"plots{i}") == 0
        assert {"distances.png", "precision_recall.png"} <= set(os.listdir(f"plots{i}"))
        assert call("compare", evaluated, run) == 0
        assert "own_test" in capsys.readouterr().out
    photos = project / "photos"
    box = ("--query", photos / "0.png", "--box", 4, 6, 44, 86)
    assert call("search", forms[2], *box, "--gallery", photos, "--output", "found.html") == 0
    assert "Left out: " in capsys.readouterr().out
    caplog.clear()
    assert call("export", forms[1], "--output", "student.ts", "--check-images", 1) == 0
    assert "0.png" in capsys.readouterr().out
    assert not [message for message in caplog.messages if "id_table" in message]
    assert call("table", project / "teacher", "--output", "table.pth", "SEED", 3) == 0
    assert call("gradients", forms[0], "--batches", 1) == 0
    assert "loss_id_table" in capsys.readouterr().out
    left = {"found.html", "found.json", "student.ts", "table.pth", "0.png", "plots2"}
    assert left <= set(os.listdir(elsewhere))


def test_a_searcher_of_a_training_detects_embeds_and_ranks(student, project, elsewhere):
    photos = project / "photos"
    searcher = CheckpointSearcher.load(student)
    boxes, scores, embeddings = searcher.detect(str(photos / "1.png"))
    assert boxes.shape == (len(scores), 4) and len(embeddings) == len(scores) > 0
    (given,) = searcher.embed(str(photos / "0.png"), [[4, 6, 44, 86]])
    assert np.linalg.norm(given) == pytest.approx(1, abs=1e-5)
    query = searcher.find_query(str(photos / "0.png"), [4, 6, 44, 86])
    np.testing.assert_array_equal(query.embedding, given)
    outcome = searcher.search(query, str(photos), top_k=2)
    assert [os.path.basename(path) for path in outcome.left_out] == ["0.png"]
    assert outcome.searched == len(PEOPLE) - 1 and len(outcome.hits) == 2
    # The best hit is the most similar of all detections in the other pictures.
    found = [searcher.detect(str(photos / f"{i}.png"))[2] @ given for i in (1, 2, 3)]
    assert outcome.hits[0].similarity == max(map(max, found))
    with pytest.raises(ValueError, match=r"0\.png.*128 x 96"):
        searcher.embed(str(photos / "0.png"), [[200, 0, 240, 40]])
    with pytest.raises(ValueError, match="besides the query picture"):
        searcher.search(query, [str(photos / "0.png")])


def test_several_sets_are_named(evaluated, capsys):
    assert call("evaluate", evaluated, "--dataset", "own_other") == 0
    capsys.readouterr()
    for command in (("evaluate",), ("show", "--output", "a.png"), ("plot", "--output", "plots")):
        assert call(command[0], evaluated, *command[1:]) == 2
        error = capsys.readouterr().err
        assert "own_other" in error and "own_test" in error and error.count("\n") == 1
    assert call("show", evaluated, "--output", "a.png", "--dataset", "own_other") == 0
    assert call("show", evaluated / "inference" / "own_test", "--output", "a.png") == 0


@pytest.mark.parametrize("command", ["evaluate", "show", "plot", "compare", "export", "gradients"])
def test_a_folder_that_is_no_run_is_one_line(command, elsewhere, capsys):
    (elsewhere / "empty").mkdir()
    more = {"compare": ("empty",), "evaluate": (), "gradients": ()}
    assert call(command, "empty", *more.get(command, ("--output", "a.png"))) == 2
    error = capsys.readouterr().err
    assert "empty" in error and error.count("\n") == 1


def test_a_training_that_has_not_ended_is_one_line(student, elsewhere, capsys):
    (student / "model_final.pth").unlink()
    for command in (("export", "--output", "a.ts"), ("evaluate",), ("gradients",)):
        assert call(command[0], student, *command[1:]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "model_final.pth" in error and "--weights" in error


def test_modules_of_a_training_are_named_and_not_imported(student, elsewhere, capsys):
    record = json.loads((student / "run.json").read_text())
    assert record["imports"] == []
    (elsewhere / "mine_of_the_test.py").write_text("raise SystemExit('executed')")
    (student / "run.json").write_text(json.dumps({**record, "imports": ["mine_of_the_test"]}))
    assert call("export", student, "--output", "a.ts") == 2
    error = capsys.readouterr().err
    assert "--import mine_of_the_test" in error and error.count("\n") == 1


def test_train_records_its_modules_and_its_folder(project, tmp_path, monkeypatch):
    (tmp_path / "mine_too.py").write_text("")
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(tmp_path)
    config = ("--config-file", "teacher.yaml", "--import", "mine_too")
    assert call("train", *config, "OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 1) == 0
    run = find_run(str(tmp_path / "run"))
    assert run.imports == ("mine_too",)
    assert os.path.samefile(run.working_directory, project)


@pytest.mark.parametrize("content", ["{", "3", '{"working_directory": 3}', '{"imports": []}'])
def test_a_damaged_record_is_one_line(student, elsewhere, content, capsys):
    (student / "run.json").write_text(content)
    assert call("export", student, "--output", "a.ts") == 2
    error = capsys.readouterr().err
    assert "run.json" in error and error.count("\n") == 1


def test_runs_of_earlier_versions_work_where_they_were_trained(student, project, capsys):
    (student / "run.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert call("evaluate", student) == 0


def test_weights_of_another_network_are_refused(student, elsewhere, capsys):
    state = torch.load(student / "model_final.pth", weights_only=True)["model"]
    other = {f"other.{name}" if "reid.head" in name else name: v for name, v in state.items()}
    torch.save({"model": other}, elsewhere / "other.pth")
    assert call("evaluate", student, "--weights", "other.pth") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "other.pth" in error and "reid.head" in error and "other." in error
    assert not (student / "inference" / "own_test" / "person_search_results.json").exists()
