"""Configs of projects/DetectorKD: they merge, student and teacher fit, hints use trained maps."""

import dataclasses

import pytest
import torch
from detectron2 import model_zoo
from detectron2.data import MetadataCatalog

import kd_search.distillation.teacher as teacher_module
from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.engine import PersonSearchTrainer
from tests.projects.project_files import TREE, merged, name_of, runnable

RUNNABLE = runnable("DetectorKD")


@pytest.fixture(autouse=True)
def _no_random_weights(monkeypatch):
    """Only shapes matter here; drawing random values takes most of the time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


DISTILLED = [p for p in RUNNABLE if merged(p).MODEL.META_ARCHITECTURE == "Distiller"]


def teacher_of(cfg):
    return merged(TREE / cfg.DISTILLATION.TEACHER.CONFIG_FILE)


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_every_experiment_names_data_and_a_folder_of_its_own(path):
    cfg = merged(path)
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    others = [merged(p).OUTPUT_DIR for p in RUNNABLE if p != path]
    assert cfg.OUTPUT_DIR not in ["./output", *others]


@pytest.mark.parametrize("path", DISTILLED, ids=name_of)
def test_hints_compare_maps_that_heads_look_at(path):
    """The other maps of a teacher are not trained."""
    cfg = merged(path)
    teacher = teacher_of(cfg).MODEL
    if teacher.META_ARCHITECTURE == "RetinaNet":
        used = set(teacher.RETINANET.IN_FEATURES)
    else:
        used = {*teacher.RPN.IN_FEATURES, *teacher.ROI_HEADS.IN_FEATURES}
    assert cfg.DISTILLATION.HINT.FEATURES
    assert set(cfg.DISTILLATION.HINT.FEATURES) <= used


def table_file(cfg, folder):
    num_ids = cfg.MODEL.OIM.NUM_IDS
    rows = torch.nn.functional.normalize(torch.randn(num_ids, cfg.MODEL.REID_HEAD.EMBEDDING_DIM))
    table = IDTableFile(
        rows=rows,
        counts=torch.ones(num_ids, dtype=torch.int64),
        unlabelled=rows[:0],
        person_ids=list(range(num_ids)),
    )
    table.save(str(folder / "table.pth"))
    return str(folder / "table.pth")


@pytest.mark.parametrize("path", DISTILLED, ids=name_of)
def test_student_and_teacher_fit_every_term(path, tmp_path, monkeypatch):
    """Building connects the terms: anchors, classes and channels are compared."""
    monkeypatch.chdir(TREE)
    monkeypatch.setattr(teacher_module, "load_trained", lambda *args, **kwargs: None)
    cfg = merged(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.OIM.NUM_IDS = cfg.MODEL.OIM.NUM_IDS or 7
    cfg.DATASETS.TRAIN = ()
    if "IDTableTerm" in cfg.DISTILLATION.TERMS:
        cfg.DISTILLATION.ID_TABLE.PATH = table_file(cfg, tmp_path)
    distiller = PersonSearchTrainer.build_model(cfg)
    assert list(distiller.terms) == list(cfg.DISTILLATION.TERMS)
    ours, theirs = (
        sum(p.numel() for p in m.parameters()) for m in (distiller.student, distiller.teacher.model)
    )
    assert ours < theirs
    copied = distiller.initialise()
    assert bool(copied) == bool(cfg.DISTILLATION.INIT_FROM_TEACHER)


@pytest.mark.parametrize("path", DISTILLED, ids=name_of)
def test_distilled_student_has_data_and_schedule_of_a_plain_network(path):
    """Of its own without a teacher, or of its teacher; in person search, the network as well."""
    cfg = merged(path)
    folders = (path.parent, TREE / "configs" / path.parent.name)
    every = [merged(p) for f in folders for p in f.glob("*.yaml") if not p.name.startswith("Base-")]
    plain = [p for p in every if p.MODEL.META_ARCHITECTURE != "Distiller"]

    def data_and_schedule(cfg):
        return cfg.DATASETS, cfg.SOLVER, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN

    assert data_and_schedule(cfg) in [data_and_schedule(p) for p in plain]
    if cfg.DISTILLATION.STUDENT_META_ARCH == "PersonSearchRCNN":
        assert core(cfg) in [core(p) for p in plain]


def core(cfg):
    """All keys but those that a distilled config is there to change."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = cfg.OUTPUT_DIR = ""
    cfg.MODEL.OIM.ENABLED = True
    cfg.pop("DISTILLATION")
    return cfg


def test_class_map_of_coco_to_voc_joins_the_same_things():
    import detectron2.data  # noqa: F401  registers both

    path = next(p for p in DISTILLED if p.name == "student_r18_fpn_from_coco_r50_fpn.yaml")
    pairs = merged(path).DISTILLATION.TEACHER.CLASS_MAP
    coco = MetadataCatalog.get("coco_2017_train").thing_classes
    voc = MetadataCatalog.get("voc_2007_trainval").thing_classes
    other_names = {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert {voc[b]: coco[a] for a, b in pairs} == {v: other_names.get(v, v) for v in voc}


@pytest.mark.parametrize(
    "path, name",
    [
        ("coco/student_r18_fpn_from_r50_fpn.yaml", "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"),
        ("coco/student_retinanet_r18_from_r50.yaml", "COCO-Detection/retinanet_R_50_FPN_3x.yaml"),
    ],
)
def test_teachers_of_the_model_zoo(path, name):
    """The weights are where Detectron2 says, and their parameters are those of our teacher."""
    cfg = merged(next(p for p in DISTILLED if name_of(p) == path))
    try:
        model_zoo.get_config_file(name)
    except RuntimeError:
        pytest.skip("this Detectron2 was installed without its configs")
    url = model_zoo.get_checkpoint_url(name)
    assert url.endswith(cfg.DISTILLATION.TEACHER.WEIGHTS.removeprefix("detectron2://"))
    theirs = model_zoo.get_config(name)
    theirs.MODEL.DEVICE = "cpu"
    ours = teacher_of(cfg)
    ours.MODEL.DEVICE = "cpu"
    shapes = [
        {k: tuple(v.shape) for k, v in PersonSearchTrainer.build_model(c).state_dict().items()}
        for c in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


def test_specifications_are_compared():
    """What the test above rests on: another anchor is refused."""
    from kd_search.distillation.methods.detector import AnchorClassTerm
    from kd_search.modeling import as_distillable

    path = next(p for p in RUNNABLE if name_of(p) == "generated/teacher_r18_fpn64.yaml")
    spec = PersonSearchTrainer.build_model(as_distillable(merged(path))).spec()
    cells = [c.clone() for c in spec.anchors.cells]
    cells[0][0, 0] -= 1
    moved = dataclasses.replace(spec, anchors=dataclasses.replace(spec.anchors, cells=cells))
    with pytest.raises(ValueError, match="AnchorClassTerm.*ANCHOR_GENERATOR"):
        AnchorClassTerm().setup(spec, moved)
