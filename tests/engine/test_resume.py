"""2N iterations straight are N, an interruption, and N more: bit for bit."""

import logging
import os

import pytest
import torch
from detectron2.engine import hooks
from detectron2.utils.events import get_event_storage
from torch import nn

from kd_search.engine.solver import build_optimizer
from kd_search.utils.folder_lock import FolderInUseError
from tests.engine.toy import (
    ToyDistillerTrainer,
    ToyTrainer,
    assert_same,
    everything,
    in_another_process,
    read_metrics,
    toy_cfg,
)


def recording(cls):
    class Recording(cls):
        """Keeps the losses and file names of each iteration."""

        def run_step(self):
            super().run_step()
            self.__dict__.setdefault("losses", {})[self.iter] = self.storage.latest()["total_loss"]

    return Recording


def run(cfg, cls=ToyTrainer, stop_after=None, resume=True):
    trainer = recording(cls)(cfg)
    trainer.resume_or_load(resume=resume)
    if stop_after is not None:
        # The schedule is that of the whole training, only the loop ends early.
        trainer.max_iter = stop_after
    trainer.train()
    return trainer


@pytest.mark.parametrize("cls", [ToyTrainer, ToyDistillerTrainer])
@pytest.mark.parametrize("seed", [7, -1])
def test_resumed_run_equals_straight_run(tmp_path, cls, seed, monkeypatch):
    cfg = toy_cfg(tmp_path / "straight", "SEED", seed)
    if seed < 0:
        # With some seeds every person has an identity, and the queue stays empty: a fixed one is
        # used. The resumed run must read it from the checkpoint.
        monkeypatch.setattr("kd_search.engine.trainer.draw_seed", lambda _: 2026)
    straight = run(cfg, cls)
    assert straight.seed == (2026 if seed < 0 else seed)
    cfg.OUTPUT_DIR = str(tmp_path / "halves")
    first = run(cfg, cls, stop_after=4)
    monkeypatch.setattr("kd_search.engine.trainer.draw_seed", lambda _: 12345)
    cfg.SEED = -1
    second = run(cfg, cls)
    assert second.start_iter == 4
    assert_same(everything(straight), everything(second))
    assert {**first.losses, **second.losses} == straight.losses
    tables = [k for k in everything(straight)["model"] if k.endswith(("queue", "rows"))]
    assert tables and all(everything(straight)["model"][k].any() for k in tables)


def test_a_negative_seed_is_drawn_for_every_training(tmp_path):
    seeds = {ToyTrainer(toy_cfg(tmp_path, "SEED", -1)).seed for _ in range(4)}
    assert len(seeds) == 4 and all(0 <= seed < 2**31 for seed in seeds)


def test_gradient_clipping_of_the_config_is_applied_and_resumes(tmp_path):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-6)
    cfg = toy_cfg(tmp_path, *clip, "SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.MOMENTUM", 0.0)
    trainer = ToyTrainer(cfg)
    before = trainer.model.conv.weight.detach().clone()
    trainer.train()
    moved = (trainer.model.conv.weight - before).abs().max()
    assert 0 < moved <= 8 * 0.1 * 1e-6 * 1.5
    assert run(cfg).start_iter == 8


def test_parameters_that_share_their_settings_share_a_group():
    """Detectron2 0.5 would make four groups of these, main two."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    cfg = toy_cfg("", "SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.0)
    groups = build_optimizer(cfg, model).param_groups
    shapes = [[tuple(p.shape) for p in group["params"]] for group in groups]
    assert shapes == [[(4, 3, 1, 1)], [(4,), (4,), (4,)]]
    assert [group["weight_decay"] for group in groups] == [0.0001, 0.0]


def test_checkpoint_of_a_distiller_holds_the_student_as_model_and_terms_apart(tmp_path):
    run(toy_cfg(tmp_path), ToyDistillerTrainer)
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert "conv.weight" in checkpoint["model"]
    assert not any(k.startswith(("student", "terms")) for k in checkpoint["model"])
    assert set(checkpoint["terms"]) == {
        f"ToyTerm.table.{k}" for k in ("rows", "queue", "queue_ptr")
    }
    plain = ToyTrainer(toy_cfg(tmp_path / "plain", "MODEL.WEIGHTS", f"{tmp_path}/model_final.pth"))
    plain.resume_or_load(resume=False)
    assert plain.start_iter == 0
    assert_same(dict(plain.model.state_dict()), dict(checkpoint["model"]))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINTS_TO_KEEP", 2))
    files = sorted(f.name for f in tmp_path.glob("*.pth"))
    assert files == ["model_0000009.pth", "model_0000011.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_without_a_period_there_is_the_last_checkpoint_alone(tmp_path):
    run(toy_cfg(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 0))
    assert [f.name for f in tmp_path.glob("*.pth")] == ["model_final.pth"]


@pytest.mark.parametrize("harm", ["truncated", "empty", "missing", "flipped", "weights only"])
def test_a_corrupt_last_checkpoint_falls_back_to_the_one_before(tmp_path, harm, caplog):
    cfg = toy_cfg(tmp_path / "straight")
    straight = run(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "harmed")
    run(cfg, stop_after=6)
    os.remove(tmp_path / "harmed/model_final.pth")
    last = tmp_path / "harmed/model_0000005.pth"
    (tmp_path / "harmed/last_checkpoint").write_text(last.name)
    content = last.read_bytes()
    if harm == "missing":
        last.unlink()
    elif harm == "weights only":
        torch.save({"model": {}}, last)
    else:
        middle = len(content) // 2
        weight = content.index(b"PK", content.index(b"data/0")) - 8
        flipped = content[:weight] + bytes([content[weight] ^ 1]) + content[weight + 1 :]
        contents = {"truncated": content[:middle], "empty": b"", "flipped": flipped}
        last.write_bytes(contents[harm])
    with caplog.at_level(logging.WARNING):
        resumed = run(cfg)
    assert resumed.start_iter == 4
    assert "model_0000005.pth" in caplog.text and "model_0000003.pth" in caplog.text
    assert_same(everything(straight), everything(resumed))


def test_without_any_readable_checkpoint_resuming_says_so(tmp_path):
    cfg = toy_cfg(tmp_path)
    run(cfg)
    for file in tmp_path.glob("*.pth"):
        file.write_bytes(b"corrupt")
    with pytest.raises(ValueError, match=f"{tmp_path} .*--resume"):
        run(cfg)


def test_checkpoint_of_another_model_is_not_resumed(tmp_path, monkeypatch):
    cfg = toy_cfg(tmp_path)
    run(cfg, stop_after=2)
    monkeypatch.setattr("tests.engine.toy.NUM_IDS", 6)
    with pytest.raises(ValueError, match=r"id_table.rows.*\(5, 4\)"):
        run(cfg)


def test_another_seed_on_resume_is_ignored_with_a_warning(tmp_path, caplog):
    run(toy_cfg(tmp_path), stop_after=2)
    resumed = run(toy_cfg(tmp_path, "SEED", 8))
    assert resumed.seed == 7 and "SEED 8" in caplog.text


def test_metrics_of_iterations_that_run_again_are_not_doubled(tmp_path):
    cfg = toy_cfg(tmp_path, "SOLVER.MAX_ITER", 60, "SOLVER.CHECKPOINT_PERIOD", 50)
    run(cfg, stop_after=50)
    os.remove(tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000049.pth")
    with open(tmp_path / "metrics.json", "a") as f:
        f.write('{"iteration": 59, "total_loss": 1.0}\n{"iterat')
    run(cfg)
    lines = read_metrics(tmp_path)
    iterations = [x["iteration"] for x in lines if "total_loss" in x]
    assert iterations == [19, 39, 49, 59]
    assert all(x.get("total_loss") != 1.0 for x in lines)


class Evaluated(ToyTrainer):
    """Its quality has its peak in the evaluation after iteration 3."""

    maps = {1: 10.0, 3: 50.0, 8: 30.0}

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"person_search": {"mAP": cls.maps.get(get_event_storage().iter, 0.0)}}


def test_evaluations_are_written_and_the_last_checkpoint_is_the_newest(tmp_path):
    cfg = toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", "('some_set',)")
    run(cfg, Evaluated, stop_after=6)
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    resumed = run(cfg, Evaluated)
    lines = read_metrics(tmp_path)
    found = {x["iteration"]: x["person_search/mAP"] for x in lines if "person_search/mAP" in x}
    assert found == {1: 10.0, 3: 50.0, 5: 0.0, 8: 30.0}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert resumed._last_eval_results["person_search"]["mAP"] == 30.0
    if hasattr(hooks, "BestCheckpointer"):
        assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3


def test_mixed_precision_on_the_cpu_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED.*MODEL.DEVICE is cpu"):
        ToyTrainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True))


def test_a_second_training_in_one_folder_is_refused_before_it_writes(tmp_path, monkeypatch):
    holder = ToyTrainer(toy_cfg(tmp_path, "DATASETS.TEST", "('some_set',)"))
    holder.resume_or_load()
    lines = '{"iteration": 3, "lr": 0.1}\n'
    (tmp_path / "metrics.json").write_text(lines)

    def try_to_train():
        for work in ("resume_or_load", "train"):
            try:
                getattr(ToyTrainer(toy_cfg(tmp_path)), work)()
            except FolderInUseError as error:
                with open(tmp_path / "message", "a") as file:
                    file.write(f"{error}\n")

    in_another_process(try_to_train)
    messages = (tmp_path / "message").read_text().splitlines()
    assert len(messages) == 2
    assert all(str(os.getpid()) in message for message in messages)
    assert all(str(tmp_path) in message for message in messages)
    assert (tmp_path / "metrics.json").read_text() == lines
    held = [tmp_path / ".lock", tmp_path / "inference/some_set/.lock"]
    assert all(path.exists() for path in held)
    holder.max_iter = 1
    monkeypatch.setattr(ToyTrainer, "test", lambda *_: {})
    holder.train()
    assert not any(path.exists() for path in held)
