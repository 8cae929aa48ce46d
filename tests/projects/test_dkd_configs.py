"""Configs of projects/DKD: they merge, and student and teacher fit."""

import pytest
import torch

import kd_search.distillation.methods.dkd.reid_teacher as reid_teacher_module
from kd_search.engine import PersonSearchTrainer
from tests.projects.project_files import TREE, merged, name_of, runnable

RUNNABLE = runnable("DKD")
STUDENTS = [p for p in RUNNABLE if merged(p).MODEL.META_ARCHITECTURE == "Distiller"]
TWO_STEP = [p for p in RUNNABLE if merged(p).MODEL.META_ARCHITECTURE == "TwoStepSearch"]
TEACHERS = [p for p in RUNNABLE if p not in (*STUDENTS, *TWO_STEP)]


@pytest.fixture(autouse=True)
def _no_random_weights(monkeypatch):
    """Only shapes matter here; drawing random values takes most of the time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


def teacher_of(cfg):
    return merged(TREE / cfg.DISTILLATION.REID_TEACHER.CONFIG_FILE)


def test_every_experiment_names_a_folder_of_its_own():
    folders = [merged(path).OUTPUT_DIR for path in RUNNABLE]
    assert len(set(folders)) == len(RUNNABLE) and "./output" not in folders


@pytest.mark.parametrize("path", TEACHERS, ids=name_of)
def test_teachers_are_trained_with_moved_boxes(path):
    cfg = merged(path)
    assert cfg.MODEL.META_ARCHITECTURE == "ReIDNetwork" and cfg.REID_DATA.SIA.IMAGE_LEVEL
    assert all(name.endswith("_crops") for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


@pytest.mark.parametrize("path", TWO_STEP, ids=name_of)
def test_two_steps_are_a_detector_and_the_network_of_a_config(path):
    cfg = merged(path)
    reid = merged(TREE / cfg.MODEL.TWO_STEP.REID.CONFIG_FILE)
    assert cfg.MODEL.TWO_STEP.REID.WEIGHTS == f"{reid.OUTPUT_DIR}/model_final.pth"
    assert reid.DATASETS.TEST == tuple(f"{name}_crops" for name in cfg.DATASETS.TEST)
    heads = (cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME)
    assert heads == ("RPN", "StandardROIHeads") and cfg.INPUT.WITH_ORIGINAL_IMAGE
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST <= cfg.TEST.PERSON_SEARCH.SCORE_THRESH


@pytest.mark.parametrize("path", STUDENTS, ids=name_of)
def test_teacher_knows_the_people_of_the_student(path):
    """Same people, and what it is loaded from is what its config trains."""
    cfg = merged(path)
    teacher = teacher_of(cfg)
    assert teacher.DATASETS.TRAIN == tuple(f"{name}_crops" for name in cfg.DATASETS.TRAIN)
    assert cfg.DISTILLATION.REID_TEACHER.WEIGHTS == f"{teacher.OUTPUT_DIR}/model_final.pth"


@pytest.mark.parametrize("path", STUDENTS, ids=name_of)
def test_boxes_move_as_far_for_the_student_as_for_the_teacher(path):
    cfg = merged(path)
    student, teacher = cfg.DISTILLATION.SIA, teacher_of(cfg).REID_DATA.SIA
    assert student.FEATURE_LEVEL
    assert (student.PADDING, student.LIMIT) == (teacher.PADDING, teacher.LIMIT)


@pytest.mark.parametrize("path", STUDENTS, ids=name_of)
def test_student_and_teacher_fit_every_term(path, monkeypatch):
    """Building connects the terms: identities and sizes of embeddings are compared."""
    monkeypatch.chdir(TREE)
    monkeypatch.setattr(reid_teacher_module, "load_teacher", lambda *args: "")
    cfg = merged(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.OIM.NUM_IDS = 7
    cfg.DATASETS.TRAIN = ()
    distiller = PersonSearchTrainer.build_model(cfg)
    teacher = distiller.companions["ReIDTeacher"]
    assert len(distiller.terms) == 3 and teacher.model.num_ids == 7
    assert teacher.input_size == tuple(teacher_of(cfg).REID_DATA.SIZE)
    separate = cfg.MODEL.REID_HEAD.SEPARATE_RES5
    assert separate == ("c4" in path.name)


@pytest.mark.parametrize("path", STUDENTS, ids=name_of)
def test_network_is_the_plain_one_with_a_classifier(path):
    """But for what DKD needs, a student is the network of the same name without it."""
    folder = "projects/PersonSearchKD/configs" if "mini" in path.parent.name else "configs"
    plain = merged(TREE / folder / path.parent.name / path.name)
    ours = merged(path)
    ours.MODEL.META_ARCHITECTURE, ours.OUTPUT_DIR = plain.MODEL.META_ARCHITECTURE, plain.OUTPUT_DIR
    assert ours.MODEL.REID_HEAD.CLASSIFIER
    ours.MODEL.REID_HEAD.CLASSIFIER = plain.MODEL.REID_HEAD.CLASSIFIER
    ours.MODEL.REID_HEAD.SEPARATE_RES5 = plain.MODEL.REID_HEAD.SEPARATE_RES5
    ours.DISTILLATION = plain.DISTILLATION
    assert ours == plain
