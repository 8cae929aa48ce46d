"""When a teacher's table pays: studies over training length, number of people and width."""

import json

import pytest
from tiny import REPO

from kd_search.data.catalog import unregister
from kd_search.experiments import read_study
from kd_search.experiments.documents import DocumentMaker
from kd_search.synthetic import PRESETS, generate_dataset
from tests.projects.project_files import finish, load_script
from tests.projects.registrations import only_here

when = load_script("PersonSearchKD", "when_it_pays")
registered = only_here("rivals")
make_study = when.student_study.make_study


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path_factory):
    monkeypatch.chdir(REPO)
    data = tmp_path_factory.mktemp("when") / "data"
    generate_dataset(data, PRESETS["tiny"], seed=0, progress=False)
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(data))
    yield
    unregister("kd_generated_train_3_people")


def studies(tmp_path, *over, more=()):
    args = when.parse_args(["--over", *over, "--output", str(tmp_path), "--seeds", "1", "2", *more])
    options = [when.options_of(args, value) for value in args.values]
    return [(o, make_study(o)) for o in options]


def test_lengths_share_a_teacher_whose_schedule_stays(tmp_path):
    pairs = studies(tmp_path, "iterations", "5", "10")
    assert len({s.teachers["teacher"].folder for _, s in pairs}) == 1
    assert {s.teachers["teacher"].config.SOLVER.MAX_ITER for _, s in pairs} == {450}
    for value, (options, study) in zip((5, 10), pairs):
        assert list(study.runs) == [(row, s) for s in (1, 2) for row in ("none", "table")]
        assert {run.config.SOLVER.MAX_ITER for run in study.runs.values()} == {value}
        assert options.results == tmp_path / "results" / f"generated_iterations_{value}.json"
    folders = [run.folder for _, study in pairs for run in study.runs.values()]
    assert len(set(folders)) == len(folders) == 8


def test_people_lose_their_identity_and_stay_in_the_pictures(tmp_path):
    ((_, study),) = studies(tmp_path, "people", "3")
    configs = [study.teachers["teacher"].config, *(run.config for run in study.runs.values())]
    assert {cfg.MODEL.OIM.NUM_IDS for cfg in configs} == {3}
    assert {cfg.DATASETS.TRAIN for cfg in configs} == {("kd_generated_train_3_people",)}
    assert {cfg.DATASETS.TEST for cfg in configs} == {("kd_generated_test",)}
    files = when.locate_split("kd_generated_train")
    before = json.loads(open(files.json_file).read())
    after = json.loads((tmp_path / "people_3" / "train.json").read_text())
    # The results file has no places of this machine.
    finish(study.runs["none", 1], {"mAP": 1.0})
    study.args.protocol = None
    written = json.dumps(study.content())
    assert str(tmp_path) not in written and files.image_root not in written
    assert "OUTPUT/train.json" in written and "$KD_SEARCH_GENERATED" in written
    assert after["images"] == before["images"]
    kept = {a["person_id"] for a in after["annotations"]} - {None}
    assert len(kept) == 3
    for old, new in zip(before["annotations"], after["annotations"]):
        known = old["person_id"] in kept
        assert {**new, "person_id": 0} == {**old, "person_id": 0}
        assert new["person_id"] == (old["person_id"] if known else None)


def test_widths_are_those_of_the_student_alone(tmp_path):
    ((_, study),) = studies(tmp_path, "width", "0.25", more=["--teacher-iterations", "7"])
    for run in study.runs.values():
        assert run.config.MODEL.RESNETS.WIDTH_MULTIPLIER == 0.25
    teacher = study.teachers["teacher"].config
    assert teacher.MODEL.RESNETS.WIDTH_MULTIPLIER == 1.0 and teacher.SOLVER.MAX_ITER == 7


def test_the_axes_share_their_middle(tmp_path):
    more = ["--iterations", "7", "--teacher-iterations", "9"]
    axes = (("iterations", "7", "14"), ("people", "6"), ("width", "0.5"))
    found = [studies(tmp_path, *over, more=more) for over in axes]
    (first, other), (second,), (third,) = found
    assert other[0].results.name == "generated_iterations_14.json"
    for options, study in (first, second, third):
        assert options.results.name == "generated_middle.json"
        assert set(study.teachers["teacher"].config.DATASETS.TRAIN) == {"kd_generated_train"}
        for key, run in study.runs.items():
            assert run.folder == first[1].runs[key].folder
            assert run.opts == first[1].runs[key].opts
            assert run.config.SOLVER.MAX_ITER == 7
            assert run.opts[run.opts.index(when.WIDTH) + 1] == 0.5


@pytest.mark.parametrize("axis, value", [("iterations", "5"), ("width", "0.25")])
def test_results_files_make_a_curve(tmp_path, axis, value):
    root = tmp_path / "root"
    values = [value, str(2 * float(value)).removesuffix(".0")]
    files = []
    for number, (options, study) in enumerate(studies(tmp_path / "out", axis, *values)):
        for (row, seed), run in study.runs.items():
            gain = (1 + number) * (row == "table")
            finish(run, {"mAP": 40.0 + seed + gain})
            result = json.loads((run.folder / "result.json").read_text())
            result["iterations"] = run.config.SOLVER.MAX_ITER
            (run.folder / "result.json").write_text(json.dumps(result))
        options.results = root / f"{number}.json"
        study.write_table()
        files.append(f"{number}.json")
        assert "--over" in read_study(options.results).command
    x = "iterations" if axis == "iterations" else when.WIDTH
    document = root / "README.md"
    document.write_text(
        f"<!-- results: {';'.join(files)} curve=gain.svg row=table x={x} -->\n<!-- /results -->\n"
    )
    filled = DocumentMaker(root).fill(document)
    label = "training iterations" if axis == "iterations" else x
    assert f"mAP of table above none over {label}" in filled.text and len(filled.pictures) == 1


@pytest.mark.parametrize(
    "over, message",
    [
        (["height", "1"], "--over"),
        (["people"], "--over"),
        (["people", "3.5"], "--over people"),
        (["width", "0"], "0.0 is not above 0"),
        (["people", "700"], "has 6, not 700"),
    ],
)
def test_bad_input_is_one_line(tmp_path, over, message, capsys):
    try:
        status = when.main(["--over", *over, "--output", str(tmp_path)])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
