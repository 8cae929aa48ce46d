"""The study of projects/PersonSearchKD: rows, networks, and the table that the teacher leaves."""

import pytest
import torch
import yaml
from tiny import REPO

from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.engine import PersonSearchTrainer
from kd_search.experiments.tuning import read_candidates
from kd_search.synthetic import PRESETS, generate_dataset
from kd_search.utils.files import file_sha256
from tests.projects.project_files import finish, load_script
from tests.projects.registrations import only_here

ablate = load_script("PersonSearchKD", "person_search_study")
registered = only_here("rivals")
CONFIGS = "projects/PersonSearchKD/configs/prw_c6_mini"
IDS = ["MODEL.OIM.NUM_IDS", "7"]
DETECTOR = {
    "RegionClassTerm",
    "AnchorClassTerm",
    "RegionRegressionTerm",
    "AnchorRegressionTerm",
    "HintTerm",
}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)


def study_of(tmp_path, *more):
    args = ["--output", str(tmp_path), "--seeds", "1", "2", "--opts", *IDS, *more]
    if "--teacher-opts" not in more:
        args += ["--teacher-opts", *IDS]
    return ablate.make_study(ablate.parse_args(args))


def test_rows_differ_in_what_teaches_them_alone(tmp_path):
    study = study_of(tmp_path)
    runs = {row: study.runs[row, 2].config for row in [row.name for row in study.rows]}
    alone = runs.pop("none")
    assert alone.MODEL.META_ARCHITECTURE == "PersonSearchRCNN" and alone.MODEL.OIM.ENABLED
    terms = {row: set(cfg.DISTILLATION.TERMS) for row, cfg in runs.items()}
    assert terms["table"] == {"IDTableTerm"} and terms["detector"] == DETECTOR
    assert terms["table+detector"] == DETECTOR | {"IDTableTerm"}
    assert terms["table+PKD"] == terms["PKD"] | terms["table"]
    teacher = study.teachers["teacher"].weights
    for row, cfg in runs.items():
        by_table = "IDTableTerm" in terms[row]
        # An identity is learned from one of the two.
        assert cfg.MODEL.OIM.ENABLED != by_table
        assert cfg.DISTILLATION.STUDENT_META_ARCH == "PersonSearchRCNN" and cfg.SEED == 2
        table = str(teacher.parent / "id_table.pth") if by_table else ""
        assert cfg.DISTILLATION.ID_TABLE.PATH == table
        assert cfg.DISTILLATION.TEACHER.WEIGHTS == (str(teacher) if row != "table" else "")
        assert (cfg.SOLVER, cfg.INPUT, cfg.DATASETS) == (alone.SOLVER, alone.INPUT, alone.DATASETS)
    weights = [runs[row].DISTILLATION.DDPS.PEOPLE_WEIGHT for row in ("DDPS", "DDPS x20")]
    assert weights[1] == pytest.approx(20 * weights[0])
    assert {run.imports for run in study.runs.values()} == {("rivals",)}


def test_sets_share_the_teacher_and_have_files_of_their_own(tmp_path):
    names = ["mobilenetv2", "r18w50", "same_size"]
    assert [*names, "generated"] == list(ablate.SETS)
    studies = {name: study_of(tmp_path, "--set", name) for name in names}
    assert len({s.teachers["teacher"].folder for s in studies.values()}) == 1
    assert len({s.results_file for s in studies.values()}) == 3
    folders = [run.folder for s in studies.values() for run in s.runs.values()]
    assert len(set(folders)) == len(folders)
    cfgs = {name: s.runs["none", 1].config for name, s in studies.items()}
    teacher = studies["r18w50"].teachers["teacher"].config
    assert cfgs["same_size"].MODEL == teacher.MODEL and teacher.MODEL.FPN.OUT_CHANNELS == 256
    assert {cfgs[name].MODEL.FPN.OUT_CHANNELS for name in ("mobilenetv2", "r18w50")} == {64}
    assert cfgs["r18w50"].MODEL.WEIGHTS == ""
    assert cfgs["r18w50"].MODEL.BACKBONE.NAME == "build_width_resnet_fpn_backbone"
    for cfg in [*cfgs.values(), teacher]:
        assert cfg.SOLVER.MAX_ITER == 400 and cfg.INPUT.MIN_SIZE_TEST == 224


def test_every_row_has_candidates(tmp_path):
    path = REPO / "projects/PersonSearchKD/candidates.yaml"
    found = read_candidates(path, [row.name for row in ablate.ROWS])
    assert len(found["none"]) == len(found["table"]) > 1
    assert found["none"] == yaml.safe_load(path.read_text())["default"]


def test_the_table_is_that_of_the_trained_teacher(tmp_path, monkeypatch):
    generate_dataset(tmp_path / "data", PRESETS["tiny"], seed=0, progress=False)
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(tmp_path / "data"))
    small = ["INPUT.MIN_SIZE_TEST", "64", "MODEL.FPN.OUT_CHANNELS", "16"]
    small += [
        "DATASETS.TRAIN",
        "('kd_generated_train',)",
        "DATASETS.TEST",
        "('kd_generated_test',)",
    ]
    more = ["--teacher-config", f"{CONFIGS}/student_r18w50_fpn.yaml", "--teacher-opts", *small]
    study = study_of(tmp_path / "out", "--rows", "table", *more)
    teacher = study.teachers["teacher"]
    finish(teacher, {"mAP": 1.0})
    path = teacher.folder / "id_table.pth"
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = PersonSearchTrainer.build_model(teacher.config)
        torch.save({"model": model.state_dict()}, teacher.weights)
        before = path.stat() if path.exists() else None
        study.before_students()
        tables.append(IDTableFile.load(path))
        assert tables[-1].teacher_sha256 == file_sha256(teacher.weights)
        assert tables[-1].dataset == "kd_generated_train"
        # Kept for the same teacher.
        assert (path.stat() == before) == (len(tables) == 2)
    assert not torch.equal(tables[0].rows, tables[2].rows)
    assert study.runs["table", 1].config.DISTILLATION.ID_TABLE.PATH == str(path)
