"""Parts that do not fit are refused in one line that names class and config key."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny import detection_input, tiny_cfg, tiny_detector_cfg, training_input
from torch import nn

from kd_search.config import get_cfg, import_modules, registry
from kd_search.distillation import (
    Companion,
    DistillationTerm,
    Distiller,
    FrozenTeacher,
    build_terms,
)
from kd_search.distillation.companions import companions_of
from kd_search.distillation.methods.dkd import ReIDTeacher, TripletRelationTerm
from kd_search.distillation.teacher import read_teacher_config
from kd_search.modeling import as_distillable, build_distillable
from kd_search.modeling.distillable import FeatureNetwork
from kd_search.outputs import IdentitySpec, ModelSpec, Part

FEATURES = frozenset({Part.FEATURES})


class LossTerm(DistillationTerm):
    """A term with one loss."""

    def __init__(self, name="loss_mine", factors=None):
        super().__init__()
        self.name, self.factors = name, factors or {}

    @property
    def hard_loss_factors(self):
        return self.factors

    def forward(self, student, teacher):
        return {self.name: student.features["p2"].sum() * 0.0}


def detector():
    return build_model(as_distillable(tiny_detector_cfg()))


def term(**attributes):
    made = LossTerm()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def distill(*terms, student=None, **others):
    names = [f"T{number}" for number in range(len(terms))]
    terms = nn.ModuleDict(dict(zip(names, terms)))
    return Distiller(student=student or detector(), terms=terms, **others)


def one_step(*terms):
    with EventStorage():
        return distill(*terms).train()([detection_input()])


class NoForwardTrain(nn.Module):
    def spec(self):
        return ModelSpec(features={}, num_classes=1)


class OtherSignature(NoForwardTrain):
    def forward_train(self):
        """Takes no batch."""


class OtherHooks(Companion):
    def after_student(self, outputs):
        """Takes the outputs of one network alone."""


class TwoPasses(nn.Module):
    """Runs its backbone twice in a step."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()

    def forward(self, batch):
        return {"loss": self.backbone(batch[0]["image"]).sum() + self.backbone(torch.ones(1)).sum()}


class Twice(FeatureNetwork, TwoPasses):
    pass


class Forgetful(Companion):
    def after_student(self, network, student, teacher, early):
        """Returns nothing."""


def one_step_with(companion):
    with EventStorage():
        distiller = distill(term(companions=("Mine",)), companions={"Mine": companion})
        distiller.train()([detection_input()])


def teacher_node(path):
    cfg = get_cfg()
    cfg.DISTILLATION.TEACHER.CONFIG_FILE = path
    return cfg.DISTILLATION.TEACHER


def unknown_student():
    cfg = tiny_detector_cfg()
    cfg.DISTILLATION.STUDENT_META_ARCH = "NoSuchNetwork"
    Distiller(cfg)


def unknown_term():
    cfg = get_cfg()
    cfg.DISTILLATION.TERMS = ["NoSuchTerm"]
    build_terms(cfg)


def teacher_of_regions_for_a_retinanet():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "RetinaNet", "cpu", ""
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    FrozenTeacher(build_distillable(cfg), frozenset({Part.REGION_LOGITS}))


def triplets_of_other_sizes():
    student, teacher = (
        ModelSpec(features={}, num_classes=1, crops=IdentitySpec(size)) for size in (8, 16)
    )
    TripletRelationTerm(margin=0.3).setup(student, teacher)


def taken_key(monkeypatch):
    def add(cfg):
        cfg.DISTILLATION.TERMS = ["mine"]

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register_config(add)
    get_cfg()


def reid_teacher_without_classify():
    class Half(nn.Module):
        def spec(self):
            return ModelSpec(features={}, num_classes=0)

        def crop_features(self, crops):
            return crops

    ReIDTeacher(Half(), input_size=(8, 4))


def crops_of_a_plain_detector():
    companion = Companion()
    companion.provides = frozenset({Part.CROP_EMBEDDINGS})
    distill(term(companions=("Mine",)), companions={"Mine": companion})


MISFITS = {
    "unknown term": (unknown_term, ["DISTILLATION.TERMS", "NoSuchTerm"]),
    "student lacks a part": (
        lambda: distill(term(student_parts=frozenset({Part.CROP_LOGITS}))),
        ["DISTILLATION.TERMS", "LossTerm", "crops.logits", "DistillableRCNN"],
    ),
    "student has no part of foreground logits": (
        lambda: distill(term(student_parts=frozenset({Part.FOREGROUND_LOGITS}))),
        ["DISTILLATION.TERMS", "LossTerm", "regions.foreground_logits"],
    ),
    "teacher lacks a part": (
        teacher_of_regions_for_a_retinanet,
        ["DISTILLATION.TEACHER.CONFIG_FILE", "DistillableRetinaNet", "regions.logits"],
    ),
    "no teacher": (
        lambda: distill(term(teacher_parts=FEATURES)),
        ["DISTILLATION.TERMS", "features", "teacher"],
    ),
    "a part that is no Part": (
        lambda: distill(term(teacher_parts=frozenset({"features"}))),
        ["DISTILLATION.TERMS", "LossTerm.teacher_parts", "'features'"],
    ),
    "factor of a loss that is not there": (
        lambda: one_step(LossTerm(factors={"loss_other": 0.5})),
        ["DISTILLATION.TERMS", "hard_loss_factors", "loss_other"],
    ),
    "two shares of a loss": (
        lambda: distill(LossTerm(factors={"loss_cls": 0.5}), LossTerm(factors={"loss_cls": 0.1})),
        ["DISTILLATION.TERMS", "T0", "T1", "loss_cls"],
    ),
    "one loss name twice": (
        lambda: one_step(LossTerm(), LossTerm()),
        ["DISTILLATION.TERMS", "T1", "'loss_mine'"],
    ),
    "a module that is no term": (
        lambda: distill(nn.Linear(1, 1)),
        ["DISTILLATION.TERMS", "Linear", "student_parts"],
    ),
    "student without forward_train": (
        lambda: distill(student=NoForwardTrain()),
        ["DISTILLATION.STUDENT_META_ARCH", "NoForwardTrain", "forward_train(batched_inputs)"],
    ),
    "forward_train of other arguments": (
        lambda: distill(student=OtherSignature()),
        ["DISTILLATION.STUDENT_META_ARCH", "OtherSignature.forward_train", "batched_inputs"],
    ),
    "teacher without forward_teacher": (
        lambda: FrozenTeacher(NoForwardTrain()),
        ["DISTILLATION.TEACHER.CONFIG_FILE", "NoForwardTrain", "forward_teacher"],
    ),
    "re-ID teacher without classify": (
        reid_teacher_without_classify,
        ["DISTILLATION.REID_TEACHER.CONFIG_FILE", "Half", "classify(features)"],
    ),
    "embeddings of other sizes": (
        triplets_of_other_sizes,
        ["TripletRelationTerm", "8", "16", "DISTILLATION.DKD.PROJECTION"],
    ),
    "a part that ranks cannot join": (
        lambda: distill(term(student_parts=FEATURES, joint_parts=FEATURES)),
        ["DISTILLATION.TERMS", "T0.joint_parts", "features"],
    ),
    "unknown companion": (
        lambda: companions_of(nn.ModuleDict({"T": term(companions=("NoSuchCompanion",))})),
        ["DISTILLATION.TERMS", "LossTerm", "NoSuchCompanion"],
    ),
    "missing companion": (
        lambda: distill(term(companions=("ReIDTeacher",))),
        ["DISTILLATION.TERMS", "LossTerm", "ReIDTeacher"],
    ),
    "after_student of other arguments": (
        lambda: distill(term(companions=("Mine",)), companions={"Mine": OtherHooks()}),
        ["DISTILLATION.TERMS", "OtherHooks.after_student", "network"],
    ),
    "student that embeds no crops": (
        crops_of_a_plain_detector,
        ["DISTILLATION.STUDENT_META_ARCH", "DistillableRCNN", "embed_crops(outputs, crops)"],
    ),
    "backbone that runs twice": (
        lambda: Twice().forward_train([{"image": torch.ones(3)}]),
        ["Twice", "2 times", "forward_train"],
    ),
    "student that is not registered": (
        unknown_student,
        ["DISTILLATION.STUDENT_META_ARCH", "'NoSuchNetwork'", "--import"],
    ),
    "config of the teacher that is not there": (
        lambda: read_teacher_config(get_cfg(), teacher_node("no.yaml"), "DISTILLATION.TEACHER"),
        ["DISTILLATION.TEACHER.CONFIG_FILE", "no.yaml"],
    ),
    "after_student that returns nothing": (
        lambda: one_step_with(Forgetful()),
        ["DISTILLATION.TERMS", "after_student", "Mine", "NoneType"],
    ),
    "module that is not there": (
        lambda: import_modules(["no_such_package.method"]),
        ["--import no_such_package.method", "PYTHONPATH"],
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_refused_in_one_line(name):
    build, words = MISFITS[name]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_key_that_is_taken_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"taken_key.*DISTILLATION\.TERMS"):
        taken_key(monkeypatch)


def test_parts_that_fit_train():
    distiller = distill(LossTerm(), student=build_model(as_distillable(tiny_cfg())))
    with EventStorage():
        assert "loss_mine" in distiller([training_input()])
