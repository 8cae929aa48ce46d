"""Companions: by name, in order, with their parts, hooks and state."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.config import get_cfg
from kd_search.distillation import (
    COMPANION_REGISTRY,
    Companion,
    DistillationTerm,
    Distiller,
    FrozenTeacher,
)
from kd_search.distillation.companions import build_companions, companions_of
from kd_search.outputs import IdentityOutputs, ModelOutputs, ModelSpec, Part
from tests.distillation.test_protocols import FEATURES, Network

EMBEDDINGS = frozenset({Part.EMBEDDINGS})


class Recorder(Companion):
    """Writes down what is called, and adds its name to the outputs."""

    def __init__(self, name, calls, weight=None):
        super().__init__()
        self.name, self.calls = name, calls
        if weight is not None:
            self.register_buffer("weight", torch.tensor(weight))

    def setup(self, terms):
        self.terms = list(terms)
        self.calls.append(f"{self.name} setup")

    def before_student(self, batched_inputs):
        self.calls.append(f"{self.name} before")
        return self.name, len(batched_inputs)

    def after_student(self, network, student, teacher, early):
        self.calls.append(f"{self.name} after")
        self.network = network
        return student.with_extra(self.name, early), teacher

    def set_progress(self, progress):
        self.progress = progress

    def hooks(self, trainer, distiller):
        return [(self.name, trainer, distiller)]


class Provider(Recorder):
    """Gives the embeddings of a teacher, which then need not have them."""

    provides = EMBEDDINGS

    def extend_spec(self, teacher):
        spec = teacher or ModelSpec(features={}, num_classes=0, parts=frozenset())
        return replace(spec, parts=spec.parts | EMBEDDINGS)

    def after_student(self, network, student, teacher, early):
        student, teacher = super().after_student(network, student, teacher, early)
        given = IdentityOutputs(embeddings=torch.ones(1, 2))
        return student, replace(teacher or ModelOutputs(), identities=given)


class Reader(DistillationTerm):
    """Keeps what it is given."""

    def __init__(self, *companions, teacher_parts=frozenset()):
        super().__init__()
        self.companions, self.teacher_parts = companions, teacher_parts

    def setup(self, student, teacher):
        self.spec = teacher

    def forward(self, student, teacher):
        self.given = student, teacher
        return {}


class LoudNetwork(Network):
    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls

    def features(self, batch):
        self.calls.append(self.name)
        return super().features(batch)


BATCH = [{"image": torch.ones(3, 4, 4)}] * 2


def distiller(calls, companions, *terms, teacher_parts=None):
    teacher = None
    if teacher_parts is not None:
        teacher = FrozenTeacher(LoudNetwork("teacher", calls), teacher_parts)
    return Distiller(
        student=LoudNetwork("student", calls),
        terms=nn.ModuleDict({f"Term{i}": term for i, term in enumerate(terms)}),
        teacher=teacher,
        companions=companions,
    )


@pytest.fixture
def registered():
    """Register classes of one test by name."""
    names = []

    def register(name, cls):
        COMPANION_REGISTRY._do_register(name, cls)
        names.append(name)

    yield register
    for name in names:
        del COMPANION_REGISTRY._obj_map[name]


def test_a_companion_gets_the_teachers_network_before_it_is_set_up():
    class Holder(Recorder):
        def set_teacher(self, network):
            self.calls.append(network.name)

    calls = []
    distiller(calls, {"A": Holder("A", calls)}, Reader("A"), teacher_parts=FEATURES)
    assert calls == ["teacher", "A setup"]
    calls.clear()
    distiller(calls, {"A": Holder("A", calls)}, Reader("A"))
    assert calls == ["A setup"]


def test_companions_run_around_the_student_in_order():
    calls = []
    pair = {name: Recorder(name, calls) for name in "AB"}
    terms = Reader("A", "B"), Reader("B"), Reader()
    model = distiller(
        calls, pair, *terms, Reader(teacher_parts=FEATURES), teacher_parts=FEATURES
    ).train()
    assert pair["A"].terms == [terms[0]] and pair["B"].terms == [*terms[:2]]
    assert calls == ["A setup", "B setup"]
    calls.clear()
    model(BATCH)
    assert calls == ["teacher", "A before", "B before", "student", "A after", "B after"]
    student, teacher = terms[2].given
    assert student.extras == {"A": ("A", 2), "B": ("B", 2)} and teacher.extras == {}
    assert pair["A"].network is model.student
    calls.clear()
    model.eval().student.forward = lambda batch: calls.append("evaluation")
    model(BATCH)
    assert calls == ["evaluation"]


def test_a_part_that_a_companion_provides_needs_no_teacher():
    calls = []
    term = Reader("P", teacher_parts=EMBEDDINGS)
    model = distiller(calls, {"P": Provider("P", calls)}, term).train()
    assert term.spec.parts == EMBEDDINGS
    model(BATCH)
    student, teacher = term.given
    assert torch.equal(teacher.get(Part.EMBEDDINGS), torch.ones(1, 2))
    assert teacher.features is None and student.identities is None
    # Nor does a teacher run that is there for something else.
    calls.clear()
    pair = {"P": Provider("P", calls)}
    distiller(calls, pair, term, teacher_parts=frozenset()).train()(BATCH)
    assert "student" in calls and "teacher" not in calls


def test_a_companion_requires_parts_of_a_teacher():
    class Needy(Recorder):
        teacher_parts = FEATURES

    calls = []
    with pytest.raises(ValueError, match=r"DISTILLATION\.TERMS.*features"):
        distiller(calls, {"N": Needy("N", calls)}, Reader("N"))
    distiller(calls, {"N": Needy("N", calls)}, Reader("N"), teacher_parts=FEATURES).train()(BATCH)
    assert "teacher" in calls


def test_a_companion_requires_parts_of_the_student():
    class Needy(Recorder):
        student_parts = EMBEDDINGS

    with pytest.raises(ValueError, match=r"TERMS.*Helper.*identities\.embeddings.*LoudNetwork"):
        distiller([], {"Helper": Needy("N", [])}, Reader("Helper"))


def test_progress_hooks_and_original_images():
    calls = []
    pair = {name: Recorder(name, calls) for name in "AB"}
    model = distiller(calls, pair, Reader("A", "B"))
    model.set_progress(0.25)
    assert pair["A"].progress == pair["B"].progress == model.terms["Term0"].progress == 0.25
    trainer = object()
    assert model.companion_hooks(trainer) == [("A", trainer, model), ("B", trainer, model)]
    assert not model.needs_original_images
    pair["B"].needs_original_images = True
    assert model.needs_original_images


def test_state_is_saved_by_key_and_read_again(tmp_path):
    calls = []

    def build(*weights):
        named, keyed, stateless = (Recorder(n, calls, w) for n, w in zip("ABC", weights))
        keyed.checkpoint_key = "prints"
        return distiller(calls, {"A": named, "B": keyed, "C": stateless}, Reader())

    PersonSearchCheckpointer(build(1.0, 2.0, None), str(tmp_path)).save("model")
    saved = torch.load(tmp_path / "model.pth", weights_only=True)
    assert {"A", "prints"} < saved.keys() and not {"B", "C"} & saved.keys()
    assert saved["A"]["weight"] == 1 and saved["prints"]["weight"] == 2
    assert set(saved["model"]) == {"conv.weight", "conv.bias"}
    other = build(7.0, 8.0, None)
    PersonSearchCheckpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
    assert other.companions["A"].weight == 1 and other.companions["B"].weight == 2


def test_frozen_networks_stay_in_evaluation_mode_and_out_of_the_state():
    class Owner(Recorder):
        def __init__(self):
            super().__init__("O", [])
            self.frozen = [nn.BatchNorm2d(2).eval().requires_grad_(False)]

        def frozen_networks(self):
            return self.frozen

    model = distiller([], {"O": Owner()}, Reader("O")).train()
    (network,) = model.companions["O"].frozen
    assert model.companions["O"].training and not network.training
    assert set(model.state_dict()) == {"student.conv.weight", "student.conv.bias"}
    model.double()
    assert network.running_mean.dtype == torch.float64


def test_companions_are_built_once_in_the_order_of_the_terms(registered):
    for name in "AB":
        registered(name, lambda cfg, student, teacher, name=name: (name, student, teacher))
    terms = nn.ModuleDict({"S": Reader("B"), "T": Reader("A", "B"), "U": Reader()})
    names = companions_of(terms)
    assert names == ["B", "A"]
    specs = Network().spec(), None
    assert build_companions(get_cfg(), names, *specs) == {n: (n, *specs) for n in "BA"}
