"""Global knowledge from generated pictures to a student that sees the prototypes as its teacher."""

import pytest
import torch
from detection_tree import SEED, register_tiny_objects
from tiny import REPO

from kd_search.data.training_records import build_record_loader, training_records
from kd_search.distillation.methods.global_knowledge.candidates import (
    annotated_boxes,
    choose_images,
)
from kd_search.distillation.methods.global_knowledge.features import CandidateFeatures
from kd_search.distillation.methods.global_knowledge.match import pool_regions
from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.losses import global_knowledge_loss
from kd_search.outputs import Part
from kd_search.synthetic import OBJECTS_PRESETS, generate_objects

CONFIG = str(REPO / "configs/objects/student_r18w25_fpn.yaml")
LEVELS = ["p2", "p3", "p4", "p5"]
STEPS = 20


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    tree = tmp_path_factory.mktemp("tree")
    generate_objects(tree / "objects", OBJECTS_PRESETS["tiny"], SEED, progress=False)
    return register_tiny_objects(tree, "objects_for_knowledge")


def cfg_of(names, output, *overrides):
    return build_config(
        CONFIG,
        [
            *("DATASETS.TRAIN", f"('{names[0]}',)", "DATASETS.TEST", "()"),
            *("INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.MIN_SIZE_TEST", "80"),
            *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", str(STEPS)),
            *("SOLVER.WARMUP_ITERS", "5", "SOLVER.CHECKPOINT_PERIOD", "0"),
            *("MODEL.FPN.OUT_CHANNELS", "16", "OUTPUT_DIR", str(output)),
            *overrides,
        ],
    )


def train(cfg):
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.model


@pytest.fixture(scope="module")
def teacher(names, tmp_path_factory):
    """Config keys of a student, with a teacher that was trained a little."""
    folder = tmp_path_factory.mktemp("teacher")
    overrides = ("MODEL.FPN.OUT_CHANNELS", "24", "MODEL.RESNETS.WIDTH_MULTIPLIER", "0.5")
    cfg = cfg_of(names, folder, *overrides)
    torch.manual_seed(0)
    train(cfg)
    (folder / "teacher.yaml").write_text(cfg.dump())
    return (
        *("DISTILLATION.TEACHER.CONFIG_FILE", str(folder / "teacher.yaml")),
        *("DISTILLATION.TEACHER.WEIGHTS", str(folder / "model_final.pth")),
    )


def distilled_cfg(names, output, teacher, *overrides):
    return cfg_of(
        names,
        output,
        *("MODEL.META_ARCHITECTURE", "Distiller"),
        *("DISTILLATION.STUDENT_META_ARCH", "GeneralizedRCNN"),
        "DISTILLATION.TERMS",
        "['GlobalKnowledgeTerm', 'WeightedFeatureTerm', 'WeightedSoftLabelTerm']",
        *("DISTILLATION.GLOBAL_KNOWLEDGE.FEATURES", str(LEVELS)),
        *("DISTILLATION.GLOBAL_KNOWLEDGE.MIN_SIZE", "12.0"),
        *("DISTILLATION.GLOBAL_KNOWLEDGE.FINEST_SCALE", "14.0"),
        *("DISTILLATION.GLOBAL_KNOWLEDGE.PERIOD", "10"),
        *teacher,
        *overrides,
    )


def knowledge_loss(cfg, distiller, student):
    """L_global of a student, every region weighing 1, with the boxes of the distiller's prototypes
    as *this* student sees them, over the annotated boxes of the first pictures."""
    bank = distiller.companions["PrototypeBank"]
    student.eval()
    records = training_records(cfg)
    images = choose_images(records, images_per_class=800, min_size=12.0, seed=0)
    loader = build_record_loader(cfg, records, list(images))
    seen = CandidateFeatures(student, distiller.teacher, bank, images, min_size=12.0).visit(loader)
    place = {
        (int(image), *box): row
        for row, (image, box) in enumerate(zip(seen.images, seen.found.boxes.tolist()))
    }
    total = 0.0
    for level, name in enumerate(LEVELS):
        filled = bank.filled[level]
        boxes = zip(bank.images[level][filled].tolist(), bank.boxes[level][filled].tolist())
        rows = torch.tensor([place[(image, *box)] for image, box in boxes])
        losses = []
        for batch in list(loader)[:8]:
            regions = annotated_boxes(records[batch[0]["training_position"]]).boxes
            index = torch.zeros(len(regions), dtype=torch.int64)
            pooled = []
            for model in (student, distiller.teacher.model):
                with torch.no_grad():
                    maps = model.forward_teacher(batch, frozenset({Part.FEATURES})).features
                pooled += pool_regions(
                    [maps[name]], [bank.strides[level]], regions, index, bank.samples
                )
            losses.append(
                global_knowledge_loss(
                    *pooled,
                    seen.student[level][rows],
                    seen.teacher[level].unpack()[rows],
                    torch.ones(len(regions)),
                )
            )
        total += float(torch.cat(losses).mean())
    return total


@pytest.mark.e2e
def test_a_student_with_the_terms_sees_prototypes_more_like_its_teacher(names, teacher, tmp_path):
    distiller = train(distilled_cfg(names, tmp_path / "distilled", teacher))
    bank = distiller.companions["PrototypeBank"]
    assert bank.filled.any(dim=2).all() and bank.filled.sum() > 2 * bank.num_groups * 4
    plain = train(cfg_of(names, tmp_path / "plain"))
    cfg = distilled_cfg(names, tmp_path / "measured", teacher)
    untaught = PersonSearchTrainer.build_model(cfg)
    untaught.student.load_state_dict(plain.state_dict())
    taught = knowledge_loss(cfg, distiller, distiller.student)
    alone = knowledge_loss(cfg, distiller, untaught.student)
    assert 0 < taught < alone
