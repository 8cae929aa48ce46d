"""What a student, teacher, term or companion must have is checked when a Distiller is built."""

import pytest
import torch
from torch import nn

from kd_search.distillation import Companion, DistillationTerm, Distiller, FrozenTeacher
from kd_search.distillation.protocols import (
    CompanionLike,
    CropStudent,
    CropTeacher,
    EmbeddingTeacher,
    RegionTeacher,
    Student,
    Teacher,
    Term,
    check_protocol,
)
from kd_search.modeling import (
    DistillableRCNN,
    DistillableRetinaNet,
    FeatureNetwork,
    PersonSearchRCNN,
    ReIDNetwork,
)
from kd_search.outputs import ModelOutputs, ModelSpec, Part

FEATURES = frozenset({Part.FEATURES})


class Network(nn.Module):
    """A student and a teacher, of no class of this package."""

    parts = FEATURES

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def spec(self):
        return ModelSpec(features={}, num_classes=1, parts=self.parts)

    def forward_train(self, batched_inputs):
        features = self.features(batched_inputs)
        return {"loss_own": features.square().mean()}, ModelOutputs(features={"f": features})

    def forward_teacher(self, batch, parts):
        return ModelOutputs(features={"f": self.features(batch)})

    def features(self, batch):
        return self.conv(torch.stack([x["image"] for x in batch]))


class ForeignTerm(nn.Module):
    """A term that is no subclass of DistillationTerm."""

    student_parts = teacher_parts = FEATURES
    joint_parts = frozenset()
    companions = ()
    needs_teacher = False
    progress = 0.0
    hard_loss_factors: dict = {}

    def setup(self, student, teacher):
        self.specs = student, teacher

    def forward(self, student, teacher):
        ours, theirs = (outputs.get(Part.FEATURES)["f"] for outputs in (student, teacher))
        return {"loss_foreign": (ours - theirs).square().mean()}

    def hooks(self, trainer):
        return []


def changed(cls, **members):
    """A subclass named Mine with other members; one that is ``None`` is missing."""

    class Mine(cls):
        def __getattribute__(self, name):
            if members.get(name, name) is None:
                raise AttributeError(name)
            return super().__getattribute__(name)

    for name, value in members.items():
        if value is not None:
            setattr(Mine, name, value)
    return Mine


def build(student=Network, term=ForeignTerm, teacher=Network, parts=FEATURES, **companions):
    return Distiller(
        student=student(),
        terms=nn.ModuleDict({"Mine": term()}),
        teacher=FrozenTeacher(teacher(), parts),
        companions={name: cls() for name, cls in companions.items()},
    )


def test_classes_need_no_base_class_of_this_package():
    model = build().train()
    losses = model([{"image": torch.ones(3, 4, 4)}])
    assert losses.keys() == {"loss_own", "loss_foreign"} and losses["loss_foreign"] > 0
    student, teacher = model.terms["Mine"].specs
    assert student.parts == teacher.parts == FEATURES


@pytest.mark.parametrize(
    ("network", "protocols"),
    [
        (DistillableRCNN, (Student, RegionTeacher)),
        (DistillableRetinaNet, (Student, Teacher)),
        (FeatureNetwork, (Student, Teacher)),
        (PersonSearchRCNN, (CropStudent, RegionTeacher, EmbeddingTeacher)),
        (ReIDNetwork, (Student, Teacher, CropTeacher)),
    ],
)
def test_networks_of_this_package_fit(network, protocols):
    model = network.__new__(network)
    if isinstance(model, nn.Module):
        nn.Module.__init__(model)
    for protocol in protocols:
        check_protocol(model, protocol, "one", "KEY")


def test_base_classes_fit():
    check_protocol(DistillationTerm(), Term, "a term", "KEY")
    check_protocol(Companion(), CompanionLike, "a companion", "KEY")


def test_protocols_tell_networks_apart():
    """A network that embeds no crops, and one that trains nothing."""
    for network, protocol, method in (
        (Network(), CropStudent, "embed_crops"),
        (Network(), RegionTeacher, "forward_regions"),
        (Network(), CropTeacher, "crop_features"),
        (Network(), EmbeddingTeacher, "embed"),
        (nn.Linear(1, 1), Student, "spec"),
    ):
        name = type(network).__name__
        with pytest.raises(ValueError, match=rf"KEY.*{name}.*{method}\(") as error:
            check_protocol(network, protocol, "one", "KEY")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["spec", "forward_train"])
def test_a_student_without_a_method_is_refused(method):
    with pytest.raises(ValueError, match=rf"STUDENT_META_ARCH.*Mine.*{method}\("):
        build(student=changed(Network, **{method: None}))


@pytest.mark.parametrize("method", ["spec", "forward_teacher"])
def test_a_teacher_without_a_method_is_refused(method):
    with pytest.raises(ValueError, match=rf"TEACHER\.CONFIG_FILE.*Mine.*{method}\("):
        build(teacher=changed(Network, **{method: None}))


def test_a_teacher_of_regions_must_predict_given_regions():
    logits = frozenset({Part.REGION_LOGITS})
    with pytest.raises(ValueError, match=r"TEACHER\.CONFIG_FILE.*Mine.*forward_regions\("):
        build(teacher=changed(Network, parts=logits), parts=logits)


@pytest.mark.parametrize(
    "name", ["setup", "hooks", "student_parts", "companions", "needs_teacher", "hard_loss_factors"]
)
def test_a_term_without_a_member_is_refused(name):
    with pytest.raises(ValueError, match=rf"DISTILLATION\.TERMS.*Mine.*{name}"):
        build(term=changed(ForeignTerm, **{name: None}))


@pytest.mark.parametrize("name", ["student_parts", "teacher_parts", "joint_parts"])
@pytest.mark.parametrize("parts", [{"features"}, "features", Part.FEATURES, [Part.FEATURES]])
def test_parts_must_be_a_set_of_the_enumeration(name, parts):
    with pytest.raises(ValueError, match=rf"TERMS.*Mine\.{name} .*(?i:features).*FEATURES"):
        build(term=changed(ForeignTerm, **{name: parts}))


def short(self, student):
    """Has one argument too few."""


def long(self, student, teacher, weight):
    """Has one too many."""


def keyword(self, student, *, teacher):
    """Has one that is given by name."""


def optional(self, student, teacher=None, weight=1.0):
    return {}


def general(self, *args):
    return {}


@pytest.mark.parametrize("forward", [short, long, keyword])
def test_a_method_of_another_signature_is_refused(forward):
    with pytest.raises(ValueError, match=r"TERMS.*Mine\.forward\(.*forward\(student, teacher\)"):
        build(term=changed(ForeignTerm, forward=forward))


@pytest.mark.parametrize("forward", [optional, general])
def test_a_signature_that_takes_more_fits(forward):
    build(term=changed(ForeignTerm, forward=forward))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"before_student": None}, r"before_student\("),
        ({"needs_original_images": None}, "needs_original_images"),
        ({"after_student": short}, r"after_student\(.*network, student, teacher, early"),
        ({"provides": {"crops"}}, r"provides.*'crops'"),
    ],
)
def test_a_companion_that_does_not_fit_is_refused(members, message):
    with pytest.raises(ValueError, match=rf"DISTILLATION\.TERMS.*Mine.*{message}"):
        build(Helper=changed(Companion, **members))
