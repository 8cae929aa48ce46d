"""Distiller: student, terms, teacher and companions when moved, saved or trained."""

import copy

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from tiny import tiny_cfg, training_input
from tiny_distiller import losses_of
from tiny_table import write_table
from torch import nn

from kd_search.distillation import (
    DISTILLATION_TERM_REGISTRY,
    DistillationTerm,
    Distiller,
    FrozenTeacher,
)
from kd_search.distillation.methods.dkd import ReIDTeacher
from kd_search.outputs import CROP_PARTS, IdentitySpec, ModelSpec, Part

EMBEDDINGS = frozenset({Part.EMBEDDINGS})


class EmbeddingProbe(DistillationTerm):
    """A term for tests: pulls embeddings to the teacher's."""

    teacher_parts = student_parts = EMBEDDINGS

    def forward(self, student, teacher):
        ours, theirs = (outputs.get(Part.EMBEDDINGS) for outputs in (student, teacher))
        return {"loss_probe": (ours - theirs).square().sum()}


def table_cfg(path, *overrides):
    return tiny_cfg(
        "fpn",
        *("MODEL.META_ARCHITECTURE", "Distiller", "MODEL.OIM.ENABLED", False),
        *("DISTILLATION.TERMS", ["IDTableTerm"], "DISTILLATION.ID_TABLE.PATH", str(path)),
        *("DISTILLATION.ID_TABLE.QUEUE_SIZE", 4),
        *overrides,
    )


def with_teacher():
    torch.manual_seed(0)
    student = META_ARCH_REGISTRY.get("PersonSearchRCNN")(tiny_cfg("fpn"))
    teacher = META_ARCH_REGISTRY.get("PersonSearchRCNN")(tiny_cfg("c4"))
    terms = nn.ModuleDict({"EmbeddingProbe": EmbeddingProbe()})
    return Distiller(student=student, terms=terms, teacher=FrozenTeacher(teacher, EMBEDDINGS))


def test_losses_are_the_students_and_the_terms(tmp_path):
    write_table(tmp_path / "table.pth")
    model = build_model(table_cfg(tmp_path / "table.pth"))
    with EventStorage():
        losses = model([training_input()])
    assert losses["loss_id_table"] > 0
    # Without a table of its own the student pays nothing for identities.
    assert losses["loss_oim"] == 0
    sum(losses.values()).backward()
    assert model.student.roi_heads.reid.head.linear.weight.grad.abs().sum() > 0


def test_a_frozen_table_does_not_move_and_a_momentum_table_does(tmp_path):
    file = write_table(tmp_path / "table.pth")
    for mode, moves in (("frozen", False), ("momentum", True), ("ema", True)):
        model = build_model(table_cfg(tmp_path / "table.pth", "DISTILLATION.ID_TABLE.MODE", mode))
        table = model.terms["IDTableTerm"].table
        assert torch.equal(table.rows, file.rows)
        with EventStorage():
            model([training_input()])
        table.commit()
        assert torch.equal(table.rows, file.rows) != moves
        # People 0 and 3 were there; the others keep their row in every mode.
        others = [1, 2, 4, 5]
        assert torch.equal(table.rows[others], file.rows[others])


def test_momentum_and_ema_move_by_their_own_share(tmp_path):
    write_table(tmp_path / "table.pth")
    moved = {}
    for mode in ("momentum", "ema"):
        cfg = table_cfg(tmp_path / "table.pth", "DISTILLATION.ID_TABLE.MODE", mode)
        torch.manual_seed(0)
        table = build_model(cfg).terms["IDTableTerm"].table
        before = table.rows.clone()
        x = nn.functional.normalize(torch.randn(1, 8), dim=1)
        table.stage(x, torch.tensor([2]))
        table.commit()
        keep = {"momentum": 0.5, "ema": 0.99}[mode]
        expected = nn.functional.normalize(keep * before[2] + (1 - keep) * x[0], dim=0)
        torch.testing.assert_close(table.rows[2], expected)
        moved[mode] = (table.rows[2] - before[2]).norm()
    assert moved["ema"] < moved["momentum"]


def test_queue_starts_empty_filled_or_absent(tmp_path):
    file = write_table(tmp_path / "table.pth")
    queue = {}
    for name in ("student", "teacher", "off"):
        cfg = table_cfg(tmp_path / "table.pth", "DISTILLATION.ID_TABLE.QUEUE", name)
        queue[name] = build_model(cfg).terms["IDTableTerm"].table.queue
    assert (queue["student"] == 0).all() and queue["student"].shape == (4, 8)
    assert torch.equal(queue["teacher"][:3], file.unlabelled)
    assert queue["off"].shape == (0, 8)
    short = ("DISTILLATION.ID_TABLE.QUEUE", "teacher", "DISTILLATION.ID_TABLE.QUEUE_SIZE", 2)
    table = build_model(table_cfg(tmp_path / "table.pth", *short)).terms["IDTableTerm"].table
    # The newest ones, as if the queue had followed the teacher.
    assert torch.equal(table.queue, file.unlabelled[1:])


def test_the_loss_of_a_table_is_weighted_by_the_config(tmp_path):
    write_table(tmp_path / "table.pth")
    losses = []
    for weight in (1.0, 3.0):
        key = "DISTILLATION.ID_TABLE.LOSS_WEIGHT"
        torch.manual_seed(0)
        model = build_model(table_cfg(tmp_path / "table.pth", key, weight))
        losses.append(losses_of(model, [training_input()])["loss_id_table"])
    torch.testing.assert_close(losses[1], 3 * losses[0])


def test_evaluation_is_the_students(tmp_path):
    write_table(tmp_path / "table.pth")
    model = build_model(table_cfg(tmp_path / "table.pth")).eval()
    x = training_input()
    with torch.no_grad():
        ours = model([x])[0]["instances"]
        theirs = model.student([x])[0]["instances"]
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.pred_embeddings, theirs.pred_embeddings)


def test_teacher_is_in_no_state_dict_and_no_optimizer():
    model = with_teacher()
    student = sum(p.numel() for p in model.student.parameters())
    assert sum(p.numel() for p in model.parameters()) == student
    assert all(name.startswith("student.") for name in model.state_dict())
    assert not any(p.requires_grad for p in model.teacher.model.parameters())


def test_teacher_stays_in_eval_mode_and_is_moved_with_the_student():
    model = with_teacher().train()
    assert model.student.training
    assert not any(m.training for m in model.teacher.model.modules())
    model.double()
    assert all(p.dtype == torch.float64 for p in model.teacher.model.parameters())


def test_a_step_trains_the_student_and_leaves_the_teacher_bit_for_bit():
    model = with_teacher().train()
    before = copy.deepcopy(model.teacher.model.state_dict())
    with EventStorage():
        losses = model([training_input(), training_input((1,), seed=1)])
    assert losses["loss_probe"] > 0
    sum(losses.values()).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    after = model.teacher.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in model.teacher.model.parameters())


def test_teacher_equal_to_the_student_costs_the_probe_nothing():
    torch.manual_seed(0)
    student = META_ARCH_REGISTRY.get("PersonSearchRCNN")(tiny_cfg("fpn"))
    teacher = copy.deepcopy(student)
    terms = nn.ModuleDict({"EmbeddingProbe": EmbeddingProbe()})
    model = Distiller(student=student, terms=terms, teacher=FrozenTeacher(teacher, EMBEDDINGS))
    # Batch statistics differ from running ones, so compare in eval mode of the student too.
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    with EventStorage():
        losses = model([training_input()])
    assert losses["loss_probe"] < 1e-9


def test_the_teacher_runs_before_the_student():
    model, order = with_teacher(), []
    model.student.backbone.register_forward_hook(lambda *_: order.append("student"))
    model.teacher.model.backbone.register_forward_hook(lambda *_: order.append("teacher"))
    losses_of(model, [training_input()])
    assert order == ["teacher", "student"]


class CropNetwork(nn.Module):
    """A re-ID network with embeddings of another length than a detector's."""

    def spec(self):
        return ModelSpec({}, 0, parts=frozenset(), crops=IdentitySpec(33, 7))

    def crop_features(self, crops):
        return crops.new_zeros(len(crops), 33)

    def classify(self, features):
        return features, features.new_zeros(len(features), 7)


def test_terms_are_set_up_with_the_crops_of_the_re_id_teacher():
    class Listener(DistillationTerm):
        def setup(self, student, teacher):
            self.given = teacher

    detector = with_teacher()
    model = Distiller(
        student=detector.student,
        terms=nn.ModuleDict({"Listener": Listener()}),
        teacher=detector.teacher,
        companions={"ReIDTeacher": ReIDTeacher(CropNetwork(), input_size=(64, 32))},
    )
    given, own = model.terms["Listener"].given, detector.teacher.spec
    assert given.crops == IdentitySpec(33, 7) and own.crops.embedding_dim != 33
    assert given.identities == own.identities and given.features == own.features != {}
    assert given.parts == own.parts | CROP_PARTS


def test_a_loss_name_used_twice_is_refused():
    class Clash(DistillationTerm):
        def forward(self, student, teacher):
            return {"loss_oim": torch.zeros(())}

    student = META_ARCH_REGISTRY.get("PersonSearchRCNN")(tiny_cfg("fpn"))
    model = Distiller(student=student, terms=nn.ModuleDict({"Clash": Clash()}))
    with pytest.raises(ValueError, match="Clash.*loss_oim"), EventStorage():
        model([training_input()])


class Joint(DistillationTerm):
    """A term for tests: keeps what it is given."""

    student_parts = joint_parts = EMBEDDINGS

    def forward(self, student, teacher):
        self.given = student
        return {"loss_joint": student.identities.embeddings.sum() * 0.0}


@pytest.mark.parametrize("gathers", [True, False])
def test_a_term_for_the_joint_batch_gets_its_parts_alone(gathers):
    """In one process too, so that a part that it does not name is missing at once."""
    student = META_ARCH_REGISTRY.get("PersonSearchRCNN")(tiny_cfg("fpn"))
    term = Joint()
    terms = nn.ModuleDict({"Joint": term})
    losses_of(
        Distiller(student=student, terms=terms, gather_over_ranks=gathers), [training_input()]
    )
    given = {name for name, value in vars(term.given).items() if value}
    assert (given == {"identities"}) == gathers and "identities" in given
    identities = term.given.identities
    assert len(identities.embeddings) == len(identities.person_ids) > 0
    assert (identities.logits is None) == gathers


def test_parts_that_cannot_be_joined_are_refused():
    term = Joint()
    term.joint_parts = EMBEDDINGS | {Part.FEATURES}
    with pytest.raises(ValueError, match="Joint.joint_parts.*features.*identities.embeddings"):
        Distiller(student=with_teacher().student, terms=nn.ModuleDict({"Joint": term}))


def test_config_mistakes_are_named(tmp_path):
    table = tmp_path / "table.pth"
    write_table(table)
    for overrides, message in (
        (("DISTILLATION.TERMS", ["NoSuchTerm"]), "DISTILLATION.TERMS.*NoSuchTerm"),
        (("DISTILLATION.TERMS", ["IDTableTerm", "IDTableTerm"]), "TERMS.*IDTableTerm"),
        (("DISTILLATION.ID_TABLE.PATH", ""), "kd-search table"),
        (("DISTILLATION.ID_TABLE.PATH", str(tmp_path / "absent.pth")), "absent.pth"),
        (("DISTILLATION.ID_TABLE.MODE", "melted"), "MODE 'melted'"),
        (("DISTILLATION.ID_TABLE.QUEUE", "long"), "QUEUE 'long'"),
        (("MODEL.REID_HEAD.EMBEDDING_DIM", 16), "table.pth.* 8.*EMBEDDING_DIM 16"),
        (("MODEL.OIM.NUM_IDS", 7), "table.pth.* 6 .*7"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            build_model(table_cfg(table, *overrides))


def test_a_teacher_that_a_term_requires_must_be_named():
    DISTILLATION_TERM_REGISTRY._do_register("ProbeForTest", lambda cfg: EmbeddingProbe())
    try:
        cfg = tiny_cfg(
            "fpn",
            *("MODEL.META_ARCHITECTURE", "Distiller", "DISTILLATION.TERMS", ["ProbeForTest"]),
        )
        with pytest.raises(ValueError, match="TEACHER.CONFIG_FILE.*identities.embeddings"):
            build_model(cfg)
    finally:
        del DISTILLATION_TERM_REGISTRY._obj_map["ProbeForTest"]
