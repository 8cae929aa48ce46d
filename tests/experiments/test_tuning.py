"""Settings are chosen on people split off the training set, before anything is tested."""

import json
import shutil

import pytest
import yaml
from detectron2.data import DatasetCatalog
from tiny import REPO

import kd_search.experiments.runs
from kd_search.data.catalog import unregister
from kd_search.data.person_search.register import load_split
from kd_search.experiments import (
    Networks,
    Row,
    Study,
    StudyParser,
    TableLayout,
    build_run_config,
    read_study,
    run_study,
    student_runs,
    teacher_run,
    write_study,
)
from kd_search.experiments.train_run import main as train_run
from kd_search.experiments.tuning import finished_study, read_candidates
from kd_search.synthetic import PRESETS, generate_dataset
from tests.experiments.fake_runs import CONFIG, FakeRun, starts

ROWS = [Row("none", main=True), Row("all", {"SOLVER.MOMENTUM": 0.5})]
CANDIDATES = {"default": [{"iterations": 10}, {"iterations": 20, "SOLVER.BASE_LR": 0.5}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning") / "data"
    generate_dataset(folder, PRESETS["tiny"], seed=0, progress=False)
    return folder


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, data):
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(kd_search.experiments.runs, "_POLL_SECONDS", 0.02)
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(data))
    yield
    for name in DatasetCatalog.list():
        if name.startswith("kd_generated_train_"):
            unregister(name)


def options(tmp_path, *more, candidates=CANDIDATES):
    path = tmp_path / "candidates.yaml"
    path.write_text(yaml.safe_dump(candidates))
    parser = StudyParser("", {"x": Networks(CONFIG, CONFIG)}, [], "output/x")
    words = ["--output", tmp_path / "out", "--seeds", 1, "--candidates", path, *more]
    return parser.parse_args(list(map(str, words)))


class Maker:
    """Makes studies of fake runs, and keeps them; the AP of a run is that of ``score``."""

    def __init__(self, score, rows=ROWS):
        self.score, self.rows, self.studies = score, rows, []

    def fake(self, run):
        run = FakeRun(run.name, run.config_file, run.opts, run.folder)
        run.what = str(self.score(run.config))
        return run

    def __call__(self, args):
        cfg = build_run_config(args.student_config, list(map(str, args.opts)), args.output)
        runs = student_runs(args, cfg, self.rows, lambda row, seed: row.opts())
        teacher = self.fake(teacher_run(args, 1))
        study = Study(
            args,
            cfg,
            self.rows,
            {key: self.fake(run) for key, run in runs.items()},
            TableLayout(metrics=("AP",), base="none"),
            teachers={"teacher": teacher},
            before_students=lambda: (teacher.folder / "table").write_text(str(teacher.result())),
        )
        self.studies.append(study)
        return study


def by_rate(cfg):
    """The second candidate is better with the first row, the first one with the other."""
    sign = 1 if cfg.SOLVER.MOMENTUM == 0.9 else -1
    return 50 + sign * 10 * (cfg.SOLVER.BASE_LR == 0.5)


def test_choices_are_recorded_before_the_test_and_used(tmp_path):
    seen = []

    def score(cfg):
        seen.append(cfg)
        return by_rate(cfg)

    make = Maker(score)
    assert run_study(make, options(tmp_path)) == 0
    study = read_study(tmp_path / "out" / "ablation.json")
    protocol = study.protocol
    assert protocol.tuned and protocol.metric == "AP"
    found = [(c.row, c.overrides, c.scores, c.chosen) for c in protocol.candidates]
    first, second = CANDIDATES["default"]
    assert found == [
        ("none", first, {"1": 50.0}, False),
        ("none", second, {"1": 60.0}, True),
        ("all", first, {"1": 50.0}, True),
        ("all", second, {"1": 40.0}, False),
    ]
    final = make.studies[-1].runs
    assert final["none", 1].config.SOLVER.BASE_LR == 0.5
    assert final["none", 1].config.SOLVER.MAX_ITER == 20
    assert final["all", 1].config.SOLVER.MAX_ITER == 10
    assert {run.config.DATASETS.TRAIN for run in final.values()} == {("kd_generated_train",)}
    assert {run.choices for run in make.studies[-1].all_runs()} == {tmp_path / "out/ablation.json"}
    # Candidates and their teacher see neither the test set nor the validation people.
    tuned = [run for s in make.studies[1:-1] for run in s.all_runs()]
    assert {run.config.DATASETS.TEST for run in tuned} == {("kd_generated_train_val",)}
    assert {run.config.DATASETS.TRAIN for run in tuned} == {("kd_generated_train_fit",)}
    assert {starts(run) for run in tuned} == {1} and {run.choices for run in tuned} == {None}


def test_people_and_frames_of_the_parts_are_apart(tmp_path, data):
    run_study(Maker(by_rate), options(tmp_path))
    fit, val = (load_split(f"kd_generated_train_{part}") for part in ("fit", "val"))
    assert not set(fit.id_map.to_list()) & set(val.id_map.to_list())
    assert not {r["file_name"] for r in fit.dicts} & {r["file_name"] for r in val.dicts}
    assert len(fit.dicts) + len(val.dicts) == len(load_split("kd_generated_train").dicts)
    recorded = read_study(tmp_path / "out" / "ablation.json").protocol.validation
    assert recorded["images"] == len(val.dicts) and recorded["queries"] == len(val.queries) > 0


def test_resuming_keeps_the_choices_and_trains_nothing_again(tmp_path):
    run_study(Maker(by_rate), options(tmp_path))
    before = read_study(tmp_path / "out" / "ablation.json")
    make = Maker(lambda cfg: 0)
    assert run_study(make, options(tmp_path)) == 0
    after = read_study(tmp_path / "out" / "ablation.json")
    assert after.protocol == before.protocol and after.runs == before.runs
    assert {starts(run) for run in make.studies[-1].all_runs()} == {1}


def test_a_table_of_finished_runs_has_those_with_the_chosen_settings(tmp_path):
    file = tmp_path / "out" / "ablation.json"
    run_study(Maker(by_rate), options(tmp_path))
    before = read_study(file)
    make = Maker(by_rate)
    assert run_study(make, options(tmp_path, "--finished")) == 0
    after = read_study(file)
    assert len(after.runs) == 2 and after.runs == before.runs
    assert after.protocol == before.protocol
    assert finished_study(make, options(tmp_path)).finished().keys() == {("none", 1), ("all", 1)}


def test_rows_that_are_added_later_have_their_candidates_compared_then(tmp_path):
    assert run_study(Maker(by_rate, ROWS[:1]), options(tmp_path)) == 0
    path = tmp_path / "out" / "ablation.json"
    before = read_study(path)
    assert run_study(Maker(by_rate), options(tmp_path)) == 0
    after = read_study(path)
    first, later = after.protocol.candidates[:2], after.protocol.candidates[2:]
    assert first == before.protocol.candidates and after.protocol.metric == "AP"
    assert [(c.row, c.chosen) for c in later] == [("all", True), ("all", False)]
    runs = {run.row: run for run in after.runs}
    assert runs["none"] == before.runs[0]
    assert runs["all"].opts[-2:] == ["SOLVER.MOMENTUM", "0.5"] and runs["all"].metrics
    # Recorded before the row was run, and after the first rows were.
    assert {c.recorded for c in first} == {None} and all(c.recorded for c in later)
    # A file is refused in which the added row ran before its choices.
    content = json.loads(path.read_text())
    for number, started in ((0, before.protocol.recorded), (1, before.protocol.recorded)):
        content["runs"][number]["started"] = started
        content["protocol"]["candidates"][2]["recorded"] = "9999"
        problem = "" if number == 0 else "runs[1] started before"
        try:
            write_study(tmp_path / "edited.json", content)
        except ValueError as error:
            assert problem and problem in str(error)
        else:
            assert not problem
    # A row that nothing was chosen for, such as the teacher of several studies, may be older.
    content = json.loads(path.read_text())
    content["rows"].append({"name": "teacher"})
    content["runs"].append({**content["runs"][0], "row": "teacher", "started": "2000"})
    write_study(tmp_path / "edited.json", content)
    content["runs"][0]["started"] = "2000"
    with pytest.raises(ValueError, match=r"runs\[0\] started before"):
        write_study(tmp_path / "edited.json", content)


def test_a_tested_row_is_not_given_candidates(tmp_path, capsys):
    assert run_study(Maker(by_rate, ROWS[:1]), options(tmp_path)) == 0
    folder = tmp_path / "out" / "all" / "seed1"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    assert run_study(Maker(by_rate), options(tmp_path)) == 2
    assert "was evaluated before" in capsys.readouterr().err


def test_a_row_of_the_results_file_is_not_given_other_candidates(tmp_path, capsys):
    results = ["--results", tmp_path / "kept.json"]
    assert run_study(Maker(by_rate), options(tmp_path, *results)) == 0
    shutil.rmtree(tmp_path / "out")
    other = {"default": [{"iterations": 10}]}
    assert run_study(Maker(by_rate), options(tmp_path, *results, candidates=other)) == 2
    assert "--results" in capsys.readouterr().err
    make = Maker(lambda cfg: 0)
    assert run_study(make, options(tmp_path, *results)) == 0
    assert {starts(run) for run in make.studies[-1].all_runs()} == {0}


def test_added_rows_are_compared_like_the_first_ones(tmp_path, capsys):
    assert run_study(Maker(by_rate, ROWS[:1]), options(tmp_path)) == 0
    assert run_study(Maker(by_rate), options(tmp_path, "--tuning-seeds", 1, 2)) == 2
    assert "validation" in capsys.readouterr().err


def test_teachers_are_used_before_students(tmp_path):
    make = Maker(by_rate)
    assert run_study(make, options(tmp_path)) == 0
    out = tmp_path / "out"
    for folder in (out, out / "validation"):
        assert "AP" in (folder / "teacher" / "table").read_text()


@pytest.mark.parametrize("candidates", [{"default": [{"iterations": 10}]}, None])
def test_other_choices_after_the_test_are_refused(tmp_path, capsys, candidates):
    run_study(Maker(by_rate), options(tmp_path))
    args = options(tmp_path, candidates=candidates or CANDIDATES)
    if candidates is None:
        args.candidates = None
    capsys.readouterr()
    assert run_study(Maker(by_rate), args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ablation.json" in line and "--output" in line


def test_candidates_after_an_untuned_test_are_refused(tmp_path, capsys):
    args = options(tmp_path)
    args.candidates = None
    assert run_study(Maker(by_rate), args) == 0
    assert not read_study(tmp_path / "out" / "ablation.json").protocol.tuned
    capsys.readouterr()
    assert run_study(Maker(by_rate), options(tmp_path)) == 2
    assert "was evaluated before" in capsys.readouterr().err


@pytest.mark.parametrize("tested, recorded", [("teacher", True), ("own", True), ("none", False)])
def test_how_settings_were_chosen_is_not_recorded_after_the_test(tmp_path, tested, recorded):
    args = options(tmp_path)
    args.candidates = None
    make = Maker(by_rate, [Row("own", fixed=True), *ROWS])
    study = make(args)
    # As another study left it, which had the same teacher.
    run = study.teachers["teacher"] if tested == "teacher" else study.runs[tested, 1]
    assert not kd_search.experiments.runs.run_all([run])
    assert run_study(make, args) == 0
    protocol = read_study(tmp_path / "out" / "ablation.json").protocol
    assert (protocol is not None) == recorded


def test_nothing_is_tested_where_a_candidate_fails(tmp_path, capsys):
    make = Maker(lambda cfg: "fail" if cfg.SOLVER.BASE_LR == 0.5 else 1)
    assert run_study(make, options(tmp_path)) == 2
    assert "candidate2" in capsys.readouterr().err
    assert not (tmp_path / "out" / "ablation.json").exists()
    assert not (tmp_path / "out" / "none").exists()


@pytest.mark.parametrize("protocol", [None, {"tuned": True}])
def test_a_run_is_neither_trained_nor_tested_before_the_choices(tmp_path, capsys, protocol):
    path = tmp_path / "ablation.json"
    if protocol is not None:
        path.write_text(json.dumps({"protocol": protocol}))
    argv = ["--config-file", CONFIG, "--output", tmp_path / "run", "--choices", path]
    assert train_run(list(map(str, argv))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "choices" in line
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.parametrize(
    "content, found",
    [
        ({"rows": {"all": [{}]}, "default": [{}, {}]}, "2 for none, 1 for all"),
        ({"rows": {"L2": [{}]}}, "'L2' is none of none, all"),
        ({"rows": {"all": [{}]}}, "'none' has no list"),
        ({"default": [3]}, "'none'[0]"),
        ({"rows": 3}, "rows"),
        ({"other": 3}, "default and rows"),
        ([], "default and rows"),
    ],
)
def test_wrong_candidates_are_one_line(tmp_path, content, found):
    path = tmp_path / "candidates.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as error:
        read_candidates(path, ["none", "all"])
    message = str(error.value)
    assert str(path) in message and found in message and "\n" not in message


def test_a_file_that_is_no_yaml_is_one_line(tmp_path):
    path = tmp_path / "candidates.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match="candidates.yaml: not a YAML file") as error:
        read_candidates(path, ["none"])
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="--candidates"):
        read_candidates(tmp_path / "none.yaml", ["none"])


def test_main_rows_have_five_seeds_and_others_three(tmp_path):
    parser = StudyParser("", {"x": Networks(CONFIG, CONFIG)}, [], "output/x")
    args = parser.parse_args(["--output", str(tmp_path)])
    cfg = build_run_config(CONFIG, [], tmp_path)
    runs = student_runs(args, cfg, ROWS, lambda row, seed: row.opts())
    assert [seed for row, seed in runs if row == "none"] == [1, 2, 3, 4, 5]
    assert [seed for row, seed in runs if row == "all"] == [1, 2, 3]


CANDIDATE_FILES = sorted(REPO.glob("projects/*/candidates*.yaml"))


@pytest.mark.parametrize("path", CANDIDATE_FILES, ids=lambda path: path.parent.name)
def test_candidates_of_the_projects_are_settings_that_exist(path):
    rows = [*(yaml.safe_load(path.read_text()).get("rows") or ()), "any other"]
    for candidates in read_candidates(path, rows).values():
        assert len(candidates) > 1
        for candidate in candidates:
            keys = {key: value for key, value in candidate.items() if key != "iterations"}
            build_run_config(CONFIG, [str(x) for pair in keys.items() for x in pair], path.parent)
