"""A student of few views learns from a teacher of many."""

import copy
import logging

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny_reid import reid_cfg

from kd_search.distillation import FrozenTeacher
from kd_search.distillation.methods.vkd import DistancePreservationTerm, ViewLogitsTerm
from kd_search.outputs import IdentityOutputs, IdentitySpec, ModelOutputs, ModelSpec, Part

SIZE = (64, 32)


def batch(ids=(0, 0, 2, 2), frames=4):
    generator = torch.Generator().manual_seed(1)
    shape = (frames, 3, *SIZE)
    return [
        {"frames": torch.randint(0, 256, shape, generator=generator).float(), "person_id": i}
        for i in ids
    ]


def save_teacher(folder, cfg):
    torch.manual_seed(1)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "teacher.pth")
    (folder / "teacher.yaml").write_text(cfg.dump())
    return (
        *("DISTILLATION.TEACHER.CONFIG_FILE", str(folder / "teacher.yaml")),
        *("DISTILLATION.TEACHER.WEIGHTS", str(folder / "teacher.pth")),
    )


def distiller(*overrides):
    torch.manual_seed(0)
    return build_model(
        reid_cfg(
            *("MODEL.META_ARCHITECTURE", "Distiller"),
            *("DISTILLATION.STUDENT_META_ARCH", "ReIDNetwork"),
            *("DISTILLATION.TERMS", ["ViewLogitsTerm", "DistancePreservationTerm"]),
            *overrides,
        )
    ).train()


def outputs(logits=None, embeddings=None):
    return ModelOutputs(identities=IdentityOutputs(embeddings, logits=logits))


def test_terms_against_the_equations():
    torch.manual_seed(0)
    student = outputs(embeddings=torch.randn(3, 4), logits=torch.randn(3, 5) * 9)
    teacher = outputs(embeddings=torch.randn(3, 6), logits=torch.randn(3, 5) * 9)
    kl = 0.0
    for own, given in zip(student.identities.logits.double(), teacher.identities.logits.double()):
        p, q = (given / 10).softmax(0), (own / 10).softmax(0)
        kl += 100 * float((p * (p / q).log()).sum()) / 3
    found = ViewLogitsTerm()(student, teacher)["loss_view_logits"]
    assert float(found) == pytest.approx(0.1 * kl, rel=1e-4)
    total = 0.0
    for i in range(3):
        for j in range(3):
            ours, theirs = (
                float(
                    (k.identities.embeddings[i].double() - k.identities.embeddings[j].double())
                    .square()
                    .sum()
                )
                for k in (student, teacher)
            )
            total += 0.5 * (theirs - ours) ** 2 / 9
    found = DistancePreservationTerm()(student, teacher)["loss_distance_preservation"]
    assert float(found) == pytest.approx(1e-4 * total, rel=1e-4)


def test_logits_may_be_compared_by_their_squared_error():
    """The mean over all B x L entries, as ``MSELoss``; the temperature has no part in it."""
    torch.manual_seed(0)
    student, teacher = (outputs(torch.randn(3, 5) * 9) for _ in range(2))
    pairs = zip(student.identities.logits.flatten(), teacher.identities.logits.flatten())
    expected = 0.1 * sum((float(a) - float(b)) ** 2 for a, b in pairs) / 15
    for temperature in (1.0, 10.0):
        cfg = reid_cfg(
            *("DISTILLATION.VKD.LOGITS_DISTANCE", "mse"),
            *("DISTILLATION.VKD.TEMPERATURE", temperature),
        )
        found = ViewLogitsTerm(**ViewLogitsTerm.from_config(cfg))(student, teacher)
        assert float(found["loss_view_logits"]) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="VKD.LOGITS_DISTANCE 'l1'"):
        ViewLogitsTerm(distance="l1")


def test_a_step_trains_a_student_of_fewer_views_and_another_depth(tmp_path):
    teacher = save_teacher(tmp_path, reid_cfg("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.5))
    model = distiller(*teacher, "MODEL.REID_NETWORK.TRAIN_VIEWS", 2)
    seen = {"student": [], "teacher": []}
    for name, network in (("student", model.student), ("teacher", model.teacher.model)):
        network.backbone.register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(len(args[0]))
        )
    with EventStorage():
        losses = model(batch())
    assert seen == {"student": [8], "teacher": [16]}
    assert losses["loss_view_logits"] > 0 and losses["loss_distance_preservation"] > 0
    sum(losses.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert all(p.grad is None for p in model.teacher.model.parameters())


def test_a_student_teaches_the_next_generation_with_all_views(tmp_path):
    """Its own config has TRAIN_VIEWS 2."""
    own = ("MODEL.REID_NETWORK.TRAIN_VIEWS", 2)
    first = distiller(*save_teacher(tmp_path, reid_cfg()), *own)
    torch.save({"model": first.student.state_dict()}, tmp_path / "first.pth")
    cfg = reid_cfg(
        *("MODEL.META_ARCHITECTURE", "Distiller", "DISTILLATION.STUDENT_META_ARCH", "ReIDNetwork"),
        *own,
    )
    (tmp_path / "first.yaml").write_text(cfg.dump())
    second = distiller(
        *("DISTILLATION.TEACHER.CONFIG_FILE", str(tmp_path / "first.yaml")),
        *("DISTILLATION.TEACHER.WEIGHTS", str(tmp_path / "first.pth")),
        *own,
    )
    teacher = second.teacher.model
    for name, value in first.student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value), name
    seen = []
    teacher.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with EventStorage():
        second(batch())
    assert seen == [16]


def test_every_set_draws_its_own_views_without_repetition():
    torch.manual_seed(0)
    model = build_model(reid_cfg("MODEL.REID_NETWORK.TRAIN_VIEWS", 3))
    frames = torch.arange(5.0).expand(40, 5)
    drawn = model._drawn_views(frames)
    assert drawn.shape == (40, 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    assert len({tuple(row) for row in drawn.tolist()}) > 10
    assert set(drawn.flatten().tolist()) == {0, 1, 2, 3, 4}


def test_teacher_may_use_the_statistics_of_the_batch_and_keeps_none():
    torch.manual_seed(0)
    network = build_model(reid_cfg())
    before = copy.deepcopy(network.state_dict())
    parts = frozenset({Part.EMBEDDINGS})
    plain = FrozenTeacher(copy.deepcopy(network), parts)
    teacher = FrozenTeacher(network, parts, batch_statistics=True)
    found = teacher.forward_teacher(batch()).get(Part.EMBEDDINGS)
    expected = copy.deepcopy(plain.model).train()
    with torch.no_grad():
        torch.testing.assert_close(found, expected._predict(expected._frames(batch()))[0])
    assert not torch.allclose(found, plain.forward_teacher(batch()).get(Part.EMBEDDINGS))
    assert not network.training
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_fresh_layers_forget_loaded_weights(tmp_path, caplog):
    teacher = save_teacher(tmp_path, reid_cfg())
    model = distiller(
        *teacher,
        *("DISTILLATION.FRESH_LAYERS", ["backbone.res5", "classifier"]),
        *("DISTILLATION.INIT_FROM_TEACHER", ["backbone.res4"]),
    )
    start = copy.deepcopy(model.student.state_dict())
    loaded = {name: value + 1 for name, value in start.items()}
    model.student.load_state_dict(loaded)
    with caplog.at_level(logging.INFO, "kd_search.distillation.initialisation"):
        model.initialise()
    theirs = model.teacher.model.state_dict()
    for name, value in model.student.state_dict().items():
        if name.startswith(("backbone.res5", "classifier")):
            assert torch.equal(value, start[name]), name
        elif name.startswith("backbone.res4"):
            assert torch.equal(value, theirs[name]), name
        else:
            assert torch.equal(value, loaded[name]), name
    assert "Reinitialised:" in caplog.text and "  classifier: weight" in caplog.text
    with pytest.raises(ValueError, match="FRESH_LAYERS.*'neck9'"):
        distiller(*teacher, "DISTILLATION.FRESH_LAYERS", ["neck9"])


def test_other_identities_are_refused():
    with pytest.raises(ValueError, match="ViewLogitsTerm.* 4 .* 5"):
        student, teacher = (
            ModelSpec({}, 0, identities=IdentitySpec(8, number)) for number in (5, 4)
        )
        ViewLogitsTerm().setup(student, teacher)
