"""Configs of projects/VKD: they merge, student and teacher fit, numbers are the paper's."""

import pytest
import torch

import kd_search.distillation.teacher as teacher_module
import kd_search.modeling.backbones.torchvision_backbones as torchvision_backbones
from kd_search.engine import PersonSearchTrainer
from tests.projects.project_files import TREE, commands, merged, name_of, runnable

RUNNABLE = runnable("VKD")
STUDENTS = [p for p in RUNNABLE if merged(p).MODEL.META_ARCHITECTURE == "Distiller"]
TEACHERS = [p for p in RUNNABLE if p not in STUDENTS]
#: Students that start as their teacher, one of each backbone.
SELF = [p for p in STUDENTS if merged(p).DISTILLATION.INIT_FROM_TEACHER and p.parent.name == "mars"]
IMAGENET = TREE / "projects/VKD/configs/market1501/student_mobilenetv2.yaml"
CROSS = [p for p in STUDENTS if not merged(p).DISTILLATION.INIT_FROM_TEACHER]
#: Released training identities (MARS, Duke-Video-ReID, VeRi-776, ATRW).
IDENTITIES = {"mars": 625, "duke_video": 702, "veri": 576, "atrw": 107}


@pytest.fixture(autouse=True)
def _no_files_and_no_random_weights(monkeypatch):
    """Only shapes matter here; drawing random values takes most of the time."""
    monkeypatch.chdir(TREE)
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    monkeypatch.setattr(torchvision_backbones, "load_weights", lambda *args: {})
    monkeypatch.setattr(teacher_module, "load_trained", lambda *args, **kwargs: None)


def teacher_of(cfg):
    return merged(TREE / cfg.DISTILLATION.TEACHER.CONFIG_FILE)


def built(path):
    cfg = merged(path)
    cfg.MODEL.DEVICE, cfg.MODEL.REID_NETWORK.NUM_IDS = "cpu", 7
    return PersonSearchTrainer.build_model(cfg)


def test_every_experiment_names_a_folder_of_its_own():
    folders = [merged(path).OUTPUT_DIR for path in RUNNABLE]
    assert len(set(folders)) == len(RUNNABLE) and "./output" not in folders


@pytest.mark.parametrize("path", STUDENTS, ids=name_of)
def test_student_learns_from_a_teacher_of_its_set(path):
    """Of the same people, in crops of the same size and colours, compared in the same way."""
    cfg = merged(path)
    teacher = teacher_of(cfg)
    assert cfg.DISTILLATION.TEACHER.WEIGHTS == f"{teacher.OUTPUT_DIR}/model_final.pth"
    assert cfg.DATASETS == teacher.DATASETS and cfg.TEST.REID == teacher.TEST.REID
    assert cfg.REID_DATA.SIZE == teacher.REID_DATA.SIZE
    assert cfg.REID_DATA.TEST == teacher.REID_DATA.TEST
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD) == (
        teacher.INPUT.FORMAT,
        teacher.MODEL.PIXEL_STD,
    )


@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
def test_numbers_of_the_authors(path):
    cfg = merged(path)
    network, data = cfg.MODEL.REID_NETWORK, cfg.REID_DATA
    assert network.LABEL_SMOOTHING == 0 and network.MARGIN < 0
    assert network.TEST_EMBEDDING == "before" and cfg.TEST.REID.AP_RULE == "market"
    per_id = cfg.SOLVER.IMS_PER_BATCH / data.IDS_PER_BATCH
    name = path.parent.name
    if path in STUDENTS:
        node = cfg.DISTILLATION
        assert node.TERMS == ["ViewLogitsTerm", "DistancePreservationTerm"]
        assert node.TEACHER.BATCH_STATISTICS
        vkd = node.VKD
        assert (vkd.LOGITS_WEIGHT, vkd.TEMPERATURE, vkd.DISTANCE_WEIGHT) == (0.1, 10.0, 1e-4)
        assert (data.VIEWS.NUM, network.TRAIN_VIEWS) == (8, 2)
        assert data.VIEWS.SOURCE == ("frames" if name == "atrw" else "cameras")
    else:
        assert network.TRAIN_VIEWS == 0
    if name not in IDENTITIES:
        return
    assert per_id == 4 and cfg.SOLVER.WEIGHT_DECAY == 1e-5
    assert cfg.SOLVER.BASE_LR == 1e-4
    assert data.SIZE == ([256, 128] if name in ("mars", "duke_video") else [224, 224])
    epochs, milestones, ids_per_batch = 500, (300, 450), 12
    if path in TEACHERS:
        epochs, milestones, ids_per_batch = 300, (100, 200), 8
        if name == "veri":
            milestones, ids_per_batch = (200, 250), 18
        assert data.VIEWS.NUM == (1 if name == "veri" else 8)
    assert data.IDS_PER_BATCH == ids_per_batch
    batches = IDENTITIES[name] // ids_per_batch
    assert cfg.SOLVER.MAX_ITER == epochs * batches
    assert cfg.SOLVER.STEPS == tuple(epoch * batches for epoch in milestones)


@pytest.mark.parametrize("path", [*SELF, IMAGENET], ids=name_of)
def test_student_starts_as_its_teacher_except_for_the_last_layers(path):
    distiller = built(path)
    teacher = distiller.teacher.model
    with torch.no_grad():
        for i, value in enumerate(distiller.student.state_dict().values()):
            value.fill_(-1 - i)
        for i, value in enumerate(teacher.state_dict().values()):
            value.fill_(1 + i)
    copied = distiller.initialise()
    fresh = set(distiller.student.state_dict()) - set(copied)
    parts = {name.split(".")[0] for name in fresh}
    last = {
        "densenet121": ("backbone.features.denseblock4.",),
        "mobilenetv2": None,
    }.get(path.stem.partition("_")[2], ("backbone.res5.",))
    if path == IMAGENET:
        # The stage of the last stride, as res5.
        last = tuple(f"backbone.features.{number}." for number in range(14, 19))
    assert parts == ({"neck", "classifier"} if last is None else {"neck", "classifier", "backbone"})
    assert all(name.startswith(last) for name in fresh if name.startswith("backbone"))
    theirs = teacher.state_dict()
    assert any("running_var" in name for name in copied)
    for name, value in distiller.student.state_dict().items():
        assert torch.equal(value, theirs[name]) == (name in copied), name


def test_next_generation_has_the_student_as_its_teacher_and_a_tenth_of_the_rate():
    (opts,) = (x for x in commands("VKD", "kd-search train") if "SOLVER.BASE_LR" in x)
    path = TREE / opts[1]
    first, cfg = merged(path), merged(path)
    cfg.merge_from_list(opts[2:])
    assert cfg.SOLVER.BASE_LR == pytest.approx(max(first.SOLVER.BASE_LR / 10, 1e-5))
    assert teacher_of(cfg) == first
    assert cfg.DISTILLATION.TEACHER.WEIGHTS == f"{first.OUTPUT_DIR}/model_final.pth"
    assert cfg.OUTPUT_DIR != first.OUTPUT_DIR


@pytest.mark.parametrize("path", CROSS, ids=name_of)
def test_cross_distilled_student_was_trained_by_a_config_of_its_backbone(path):
    cfg = merged(path)
    backbone, _, teacher = path.stem.removeprefix("student_").partition("_from_")
    own = merged(path.with_name(f"teacher_{backbone}.yaml"))
    assert cfg.MODEL.WEIGHTS == f"{own.OUTPUT_DIR}/model_final.pth"
    assert teacher_of(cfg) == merged(path.with_name(f"teacher_{teacher}.yaml"))
    distiller = built(path)
    sizes = [
        x.spec().identities.embedding_dim for x in (distiller.student, distiller.teacher.model)
    ]
    assert sizes[0] < sizes[1]
    assert {name.split(".")[0] for name in distiller._fresh_values} >= {"neck", "classifier"}


@pytest.mark.parametrize(
    "path", [p for p in TEACHERS if p.parent.name == "mars"], ids=lambda path: path.stem
)
def test_sizes_of_embeddings_and_maps(path):
    """Channels of the published networks; half the usual stride but for DenseNet."""
    name = path.stem.removeprefix("teacher_")
    channels = {"r34": 512, "densenet121": 1024, "mobilenetv2": 1280}.get(name, 2048)
    model = built(path)
    (shape,) = model.spec().features.values()
    assert shape.channels == channels and shape.stride == (32 if name == "densenet121" else 16)


def test_networks_of_published_size_have_no_relu_in_their_last_block():
    """As the authors' code computes; those for a CPU lack the last one only."""
    for path in TEACHERS:
        node = merged(path).MODEL.RESNETS
        if "_r" in path.stem:
            flags = (True, False) if path.parent.name in IDENTITIES else (False, True)
            assert (node.FINAL_RELU, node.LAST_BLOCK_RELUS) == flags, name_of(path)


def test_backbones_of_every_person_and_vehicle_set():
    wanted = {"r34", "r50", "r101", "r50bam", "densenet121", "mobilenetv2"}
    for name in ("mars", "duke_video", "veri"):
        for kind in ("teacher", "student"):
            found = {p.stem.removeprefix(f"{kind}_") for p in RUNNABLE if p.parent.name == name}
            assert wanted <= found, (name, kind)
