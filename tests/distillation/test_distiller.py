"""Distiller: student, terms and teacher kept apart, whatever is moved, saved or trained."""

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
    Teacher,
)
from kd_search.outputs import Layout


class EmbeddingProbe(DistillationTerm):
    """A term for tests: pulls embeddings to the teacher's."""

    teacher_fields = frozenset({"embeddings"})

    def forward(self, student, teacher):
        return {"loss_probe": (student.embeddings - teacher.embeddings).square().sum()}


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
    return Distiller(student=student, terms=terms, teacher=Teacher(teacher, {"embeddings"}))


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


def test_the_loss_of_a_table_is_weighed_as_the_config_says(tmp_path):
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
    model = Distiller(student=student, terms=terms, teacher=Teacher(teacher, {"embeddings"}))
    # Batch statistics differ from running ones, so compare in eval mode of the student too.
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    with EventStorage():
        losses = model([training_input()])
    assert losses["loss_probe"] < 1e-9


def test_the_teacher_is_asked_before_the_student():
    model, order = with_teacher(), []
    model.student.backbone.register_forward_hook(lambda *_: order.append("student"))
    model.teacher.model.backbone.register_forward_hook(lambda *_: order.append("teacher"))
    losses_of(model, [training_input()])
    assert order == ["teacher", "student"]


class Judge(nn.Module):
    """A re-ID network with embeddings of another length than a detector's."""

    def layout(self):
        return Layout({}, 0, embedding_dim=33, num_identities=7)


def test_embeddings_and_identities_are_those_of_the_re_id_teacher():
    class Listener(DistillationTerm):
        def connect(self, student, teacher):
            self.heard = teacher

    detector = with_teacher()
    model = Distiller(
        student=detector.student,
        terms=nn.ModuleDict({"Listener": Listener()}),
        teacher=detector.teacher,
        reid_teacher=Teacher(Judge(), ()),
    )
    heard, theirs = model.terms["Listener"].heard, detector.teacher.model.layout()
    assert (heard.embedding_dim, heard.num_identities) == (33, 7)
    assert theirs.embedding_dim != 33 and heard.features == theirs.features != {}


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

    joint_fields = frozenset({"embeddings", "person_ids"})

    def forward(self, student, teacher):
        self.seen = student
        return {"loss_joint": student.embeddings.sum() * 0.0}


@pytest.mark.parametrize("gathers", [True, False])
def test_a_term_for_the_joint_batch_sees_what_it_named_alone(gathers):
    """In one process too, so that what it forgot to name shows at once."""
    student = META_ARCH_REGISTRY.get("PersonSearchRCNN")(tiny_cfg("fpn"))
    term = Joint()
    terms = nn.ModuleDict({"Joint": term})
    losses_of(
        Distiller(student=student, terms=terms, gather_over_ranks=gathers), [training_input()]
    )
    known = {name for name, value in vars(term.seen).items() if value is not None}
    assert (known == Joint.joint_fields) == gathers and Joint.joint_fields <= known


def test_fields_that_cannot_be_joined_are_refused():
    term = Joint()
    term.joint_fields = frozenset({"embeddings", "features"})
    with pytest.raises(ValueError, match="Joint asks for features of all ranks: .*embeddings"):
        Distiller(student=with_teacher().student, terms=nn.ModuleDict({"Joint": term}))


def test_config_mistakes_are_named(tmp_path):
    table = tmp_path / "table.pth"
    write_table(table)
    for overrides, message in (
        (("DISTILLATION.TERMS", ["NoSuchTerm"]), "NoSuchTerm"),
        (("DISTILLATION.TERMS", ["IDTableTerm", "IDTableTerm"]), "twice"),
        (("DISTILLATION.ID_TABLE.PATH", ""), "build_id_table.py"),
        (("DISTILLATION.ID_TABLE.PATH", str(tmp_path / "absent.pth")), "absent.pth"),
        (("DISTILLATION.ID_TABLE.MODE", "melted"), "MODE 'melted'"),
        (("DISTILLATION.ID_TABLE.QUEUE", "long"), "QUEUE 'long'"),
        (("MODEL.REID_HEAD.EMBEDDING_DIM", 16), "embeddings of 8.*EMBEDDING_DIM 16"),
        (("MODEL.OIM.NUM_IDS", 7), "has 6 identities.*has 7"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            build_model(table_cfg(table, *overrides))


def test_a_teacher_asked_for_but_not_named_is_refused():
    DISTILLATION_TERM_REGISTRY._do_register("ProbeForTest", lambda cfg: EmbeddingProbe())
    try:
        cfg = tiny_cfg(
            "fpn",
            *("MODEL.META_ARCHITECTURE", "Distiller", "DISTILLATION.TERMS", ["ProbeForTest"]),
        )
        with pytest.raises(ValueError, match="TEACHER.CONFIG_FILE is empty.*embeddings"):
            build_model(cfg)
    finally:
        del DISTILLATION_TERM_REGISTRY._obj_map["ProbeForTest"]
