"""DKD on a tiny generated set: the student ends up seeing likenesses as its re-ID teacher does."""

import json

import numpy as np
import pytest
import torch
from tiny import REPO

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.cli import gradients
from kd_search.data import PersonSearchDatasetMapper, get_person_search_dicts
from kd_search.data.person_search.mapper import absolute_boxes
from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.modeling.crops import cut_crops
from kd_search.synthetic import PRESETS, generate_dataset

pytestmark = pytest.mark.e2e

CONFIGS = REPO / "projects/DKD/configs/generated"
TEACHER_SIZE = (64, 32)
TEACHER = (
    *("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25, "REID_DATA.SIZE", list(TEACHER_SIZE)),
    *("REID_DATA.IDS_PER_BATCH", 4, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_ITER", 100),
    *("SOLVER.WARMUP_ITERS", 10, "DATASETS.TEST", ()),
)
STUDENT = (
    *("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.REID_HEAD.CONV_DIM", 32, "MODEL.REID_HEAD.EMBEDDING_DIM", 128),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 10),
    *("DATASETS.TEST", ()),
)
#: Measured on a CPU with the config's weights, correlation without and with the terms: seed 1 0.371
#: and 0.749, seed 2 0.275 and 0.571, seed 3 0.437 and 0.708. The test runs seed 1 and requires less
#: than half of the smallest gain.
LEAST_GAIN = 0.12
PLAIN = ("MODEL.META_ARCHITECTURE", "PersonSearchRCNN")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "data"
    generate_dataset(root, PRESETS["tiny"], seed=0, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_SEARCH_GENERATED", str(root))
        patch.chdir(REPO)
        yield root


def trainer_of(config, folder, *overrides):
    return PersonSearchTrainer(
        build_config(str(CONFIGS / config), [*overrides, "OUTPUT_DIR", str(folder)])
    )


def train_teacher(folder, seed=1):
    """The trained network in evaluation mode, and the keys of its students."""
    trainer = trainer_of("reid_teacher_r18.yaml", folder, *TEACHER, "SEED", seed)
    trainer.train()
    return trainer.model.eval(), taught_by(folder / "model_final.pth")


def taught_by(weights):
    return (
        *("DISTILLATION.REID_TEACHER.OPTS", list(TEACHER)),
        *("DISTILLATION.REID_TEACHER.WEIGHTS", str(weights)),
        # dp of the smaller crops.
        *("DISTILLATION.SIA.PADDING", 2.5),
    )


def student_of(trainer):
    return getattr(trainer.model, "student", trainer.model)


@torch.no_grad()
def likenesses(teacher, student, dataset):
    """Cosines between different annotated people, by teacher and by student: two (P,) arrays."""
    ours, theirs = [], []
    student.eval()
    mapper = PersonSearchDatasetMapper(False, augmentations=[])
    for record in get_person_search_dicts(dataset)[0]:
        boxes = torch.as_tensor(absolute_boxes(record["annotations"])).float()
        sample = mapper(record)
        ours.append(student.embed([sample], [boxes]))
        features = teacher.crop_features(cut_crops(sample["image"], boxes, TEACHER_SIZE))
        theirs.append(torch.nn.functional.normalize(teacher.classify(features)[0], dim=1))
    pairs = []
    for embeddings in (theirs, ours):
        rows = torch.cat(embeddings).double()
        cosines = rows @ rows.T
        pairs.append(cosines[~torch.eye(len(rows), dtype=torch.bool)].numpy())
    return pairs


def agreement(teacher, student, dataset):
    """Pearson correlation of the two."""
    return np.corrcoef(*likenesses(teacher, student, dataset))[0, 1]


def test_terms_bring_the_student_nearer_to_its_teacher(generated, tmp_path):
    teacher, opts = train_teacher(tmp_path / "teacher")
    students = {"plain": (*opts, *PLAIN), "taught": opts}
    trainers = {
        name: trainer_of("student_r18w50_fpn.yaml", tmp_path / name, *STUDENT, *own)
        for name, own in students.items()
    }
    plain, taught = trainers.values()
    assert len(taught.model.terms) == 3 and taught.model.companions["ReIDTeacher"].sampler.shifts
    start = student_of(plain).state_dict()
    for name, value in student_of(taught).state_dict().items():
        assert torch.equal(value, start[name])
    for _, ours, theirs in zip(range(3), plain.data_loader, taught.data_loader):
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(ours, theirs))

    found = {}
    for name, trainer in trainers.items():
        trainer.train()
        found[name] = agreement(teacher, student_of(trainer), "kd_generated_train")
    assert found["taught"] > found["plain"] + LEAST_GAIN, found


def test_loss_gradients_of_the_terms_are_measured_by_the_tool(generated, tmp_path):
    """Its batches hold the original images, which the re-ID teacher cuts its crops from."""
    teacher = PersonSearchTrainer.build_model(
        build_config(str(CONFIGS / "reid_teacher_r18.yaml"), TEACHER)
    )
    torch.save({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    config = str(CONFIGS / "student_r18w50_fpn.yaml")
    opts = (*STUDENT, *taught_by(tmp_path / "teacher.pth"))
    model = PersonSearchTrainer.build_model(build_config(config, opts))
    PersonSearchCheckpointer(model, str(tmp_path)).save("student")
    arguments = ["--config-file", config, "--checkpoint", str(tmp_path / "student.pth")]
    arguments += ["--batches", "1", "--output", str(tmp_path / "gradients.json")]
    assert gradients.main([*arguments, *map(str, opts)]) == 0
    losses = json.loads((tmp_path / "gradients.json").read_text())["losses"]
    for name in ("loss_probability", "loss_pair_relation", "loss_triplet_relation"):
        assert losses[name]["norm"] > 0, name
