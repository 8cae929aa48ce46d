"""Configs of projects/GlobalKnowledge: they merge, student and teacher fit, numbers are the
authors'."""

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo

import kd_search.distillation.teacher as teacher_module
from kd_search.engine import PersonSearchTrainer
from tests.projects.project_files import TREE, merged, name_of, runnable

RUNNABLE = runnable("GlobalKnowledge")
DISTILLED = [p for p in RUNNABLE if merged(p).MODEL.META_ARCHITECTURE == "Distiller"]
PLAIN = [p for p in RUNNABLE if p not in DISTILLED]
TERMS = ["WeightedFeatureTerm", "GlobalKnowledgeTerm", "WeightedSoftLabelTerm"]


@pytest.fixture(autouse=True)
def _no_files_and_no_random_weights(monkeypatch):
    """Only shapes matter here; drawing random values takes most of the time."""
    monkeypatch.chdir(TREE)
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    monkeypatch.setattr(teacher_module, "load_trained", lambda *args, **kwargs: None)


def teacher_of(cfg):
    return merged(TREE / cfg.DISTILLATION.TEACHER.CONFIG_FILE)


def core(cfg):
    """All keys but the depth and those that a distilled config is there to change."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = ""
    if cfg.MODEL.RESNETS.DEPTH > 50:
        cfg.MODEL.RESNETS.DEPTH = 50
    cfg.pop("DISTILLATION")
    return cfg


def test_every_experiment_names_data_and_a_folder_of_its_own():
    folders = [merged(path).OUTPUT_DIR for path in RUNNABLE]
    assert len(set(folders)) == len(RUNNABLE) and "./output" not in folders
    assert all(merged(path).DATASETS.TRAIN and merged(path).DATASETS.TEST for path in RUNNABLE)


@pytest.mark.parametrize("path", DISTILLED, ids=name_of)
def test_numbers_are_those_of_the_authors(path):
    """But for what depends on the size of pictures, and for person search."""
    cfg = merged(path).DISTILLATION
    node = cfg.GLOBAL_KNOWLEDGE
    assert cfg.TERMS == TERMS
    assert (node.ALPHA, node.PERCENTILE, node.BANDWIDTH) == (10.0, 40.0, 0.1)
    assert (node.PROJECTION_WEIGHT, node.FOREGROUND_WEIGHT, node.BACKGROUND_WEIGHT) == (5, 1, 4)
    assert (node.SOFT_LABEL_WEIGHT, node.TEMPERATURE, node.PERIOD) == (1.0, 2.0, 0)
    assert (node.LEVEL_REDUCTION, node.ONE_STAGE_DIVERGENCE) == ("auto", "softmax")
    assert node.WEIGHTED and node.ATTENUATION and not node.CONFIDENT_BOXES
    people = cfg.STUDENT_META_ARCH == "PersonSearchRCNN"
    assert node.GROUPS == "class" and node.PER_CLASS == (50 if people else 10)
    if path.parent.name in ("coco", "voc"):
        assert node.IMAGES_PER_CLASS == 800
        assert (node.MIN_SIZE, node.FINEST_SCALE, node.FEATURES) == (30.0, 56.0, [])


@pytest.mark.parametrize(
    "path", [p for p in RUNNABLE if p.parent.name in ("coco", "voc")], ids=name_of
)
def test_schedule_is_that_of_the_authors(path):
    cfg = merged(path)
    images = {"coco": 117266, "voc": 16551}[path.parent.name]
    epoch = images / cfg.SOLVER.IMS_PER_BATCH
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.SOLVER.OPTIMIZER == "SGD"
    assert cfg.SOLVER.MAX_ITER / epoch == pytest.approx(24, abs=0.02)
    assert [step / epoch for step in cfg.SOLVER.STEPS] == pytest.approx([16, 22], abs=0.02)
    assert cfg.SOLVER.BASE_LR == (0.01 if "retinanet" in path.name else 0.02)
    size = cfg.INPUT
    assert (size.MIN_SIZE_TRAIN, size.MAX_SIZE_TRAIN) == ((800,), 1333)
    assert (size.MIN_SIZE_TEST, size.MAX_SIZE_TEST) == (800, 1333)
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN"


#: The variant of person search that the README describes.
CLUSTERS = [
    *("DISTILLATION.GLOBAL_KNOWLEDGE.GROUPS", "identity"),
    *("DISTILLATION.GLOBAL_KNOWLEDGE.CLUSTERS", 8, "DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS", 10),
]


@pytest.mark.parametrize(
    "path, opts",
    [
        *((path, []) for path in DISTILLED),
        *((path, CLUSTERS) for path in DISTILLED if path.parent.name == "generated"),
    ],
    ids=lambda value: name_of(value) if isinstance(value, Path) else f"{len(value)} overrides",
)
def test_student_and_teacher_fit_every_term(path, opts):
    """Building sets up the terms and allocates the prototypes."""
    cfg = merged(path)
    cfg.merge_from_list(opts)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.OIM.NUM_IDS = cfg.MODEL.OIM.NUM_IDS or 7
    cfg.DATASETS.TRAIN = ()
    distiller = PersonSearchTrainer.build_model(cfg)
    assert list(distiller.terms) == TERMS
    ours, theirs = (
        sum(p.numel() for p in m.parameters()) for m in (distiller.student, distiller.teacher.model)
    )
    assert ours < theirs
    bank, node = distiller.companions["PrototypeBank"], cfg.DISTILLATION.GLOBAL_KNOWLEDGE
    assert bank.in_use and bank.is_empty and bank.per_class == node.PER_CLASS
    assert bank.strides == sorted(bank.strides)
    if node.GROUPS == "identity":
        assert bank.num_groups == node.CLUSTERS and len(bank.identity_groups) == 7
    else:
        assert bank.num_groups == distiller.student.spec().num_classes
    if path.parent.name in ("coco", "voc"):
        # The authors compare all five maps of either kind of network.
        first = 3 if "retinanet" in path.name else 2
        assert bank.names == [f"p{level}" for level in range(first, first + 5)]


@pytest.mark.parametrize("path", DISTILLED, ids=name_of)
def test_teacher_is_trained_on_the_same_data(path):
    cfg = merged(path)
    teacher, weights = teacher_of(cfg), cfg.DISTILLATION.TEACHER.WEIGHTS
    assert teacher.DATASETS.TRAIN == cfg.DATASETS.TRAIN
    assert weights.startswith("detectron2://") or weights == (
        f"{teacher.OUTPUT_DIR}/model_final.pth"
    )


@pytest.mark.parametrize(
    "path", [p for p in DISTILLED if "fpn64_distilled" not in p.name], ids=name_of
)
def test_distilled_student_is_a_plain_network_with_terms(path):
    """Network, data and schedule are those of a plain network or, except for the depth, of the
    teacher."""
    cfg = merged(path)
    places = ("configs", "projects/PersonSearchKD/configs")
    folders = [path.parent, *(TREE / place / path.parent.name for place in places)]
    plain = [merged(p) for f in folders for p in f.glob("*.yaml") if not p.name.startswith("Base-")]
    plain = [p for p in plain if p.MODEL.META_ARCHITECTURE == cfg.DISTILLATION.STUDENT_META_ARCH]
    assert core(cfg) in [core(p) for p in plain]


@pytest.mark.parametrize(
    "path", [p for p in DISTILLED if p.parent.name in ("voc", "cuhk_sysu", "prw")], ids=name_of
)
def test_student_starts_from_one_that_was_trained(path):
    cfg = merged(path)
    folder = TREE / ("configs" if path.parent.name != "voc" else path.parents[1]) / path.parent.name
    outputs = {f"{merged(p).OUTPUT_DIR}/model_final.pth": merged(p) for p in folder.glob("*.yaml")}
    start = outputs[cfg.MODEL.WEIGHTS]
    assert start.MODEL.RESNETS == cfg.MODEL.RESNETS and start.DATASETS == cfg.DATASETS
    assert start.MODEL.META_ARCHITECTURE == cfg.DISTILLATION.STUDENT_META_ARCH


@pytest.mark.parametrize(
    "path, student, teacher",
    [
        (
            "coco/student_r50_fpn_from_r101_fpn.yaml",
            "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
            "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
        ),
        (
            "coco/student_retinanet_r50_from_r101.yaml",
            "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
            "COCO-Detection/retinanet_R_101_FPN_3x.yaml",
        ),
    ],
)
def test_networks_of_the_model_zoo(path, student, teacher):
    """The weights are where Detectron2 says, and their parameters are those of our networks."""
    cfg = merged(next(p for p in DISTILLED if name_of(p) == path))
    try:
        model_zoo.get_config_file(student)
    except RuntimeError:
        pytest.skip("this Detectron2 was installed without its configs")
    plain = cfg.clone()
    plain.MODEL.META_ARCHITECTURE = cfg.DISTILLATION.STUDENT_META_ARCH
    sides = (
        (student, cfg.MODEL.WEIGHTS, plain),
        (teacher, cfg.DISTILLATION.TEACHER.WEIGHTS, teacher_of(cfg)),
    )
    for name, weights, ours in sides:
        assert model_zoo.get_checkpoint_url(name).endswith(weights.removeprefix("detectron2://"))
        shapes = []
        for config in (ours, model_zoo.get_config(name)):
            config.MODEL.DEVICE = "cpu"
            state = PersonSearchTrainer.build_model(config).state_dict()
            shapes.append({k: tuple(v.shape) for k, v in state.items()})
        assert shapes[0] == shapes[1]
