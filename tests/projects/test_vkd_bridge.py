"""A network of VKD, distilled or not, teaches a person search student by config alone."""

import pytest
import torch
from crops_inputs import crops_input
from detectron2.utils.events import EventStorage
from tiny import REPO, tiny_cfg

from kd_search.engine import PersonSearchTrainer
from tests.projects.project_files import merged

CONFIGS = "projects/VKD/configs/generated"
OPTS = ["MODEL.RESNETS.WIDTH_MULTIPLIER", "0.125", "MODEL.REID_NETWORK.NUM_IDS", "11"]


def trained(config, path):
    """Weights of a network of other people, as a training leaves them."""
    cfg = merged(REPO / config)
    cfg.merge_from_list(OPTS)
    cfg.MODEL.META_ARCHITECTURE = "ReIDNetwork"
    torch.save({"model": PersonSearchTrainer.build_model(cfg).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("name", ["teacher_r18w50", "student_r18w50"])
def test_network_of_either_stage_is_a_re_id_teacher(name, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    config = f"{CONFIGS}/{name}.yaml"
    cfg = tiny_cfg(
        "fpn",
        *("MODEL.META_ARCHITECTURE", "Distiller", "DISTILLATION.TERMS", ["PairRelationTerm"]),
        *("DISTILLATION.REID_TEACHER.CONFIG_FILE", config),
        *("DISTILLATION.REID_TEACHER.WEIGHTS", trained(config, tmp_path / "weights.pth")),
        *("DISTILLATION.REID_TEACHER.OPTS", OPTS),
    )
    model = PersonSearchTrainer.build_model(cfg).train()
    teacher = model.companions["ReIDTeacher"]
    # Crops of its own size, and colours in its own order.
    assert teacher.input_size == (128, 64) and teacher.flips_channels
    with EventStorage():
        losses = model([crops_input(tmp_path, (0, -1, 3))])
    assert losses["loss_pair_relation"] > 0
    losses["loss_pair_relation"].backward()
    gradients = [p.grad for p in model.student.roi_heads.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(p.grad is None for p in teacher.model.parameters())
