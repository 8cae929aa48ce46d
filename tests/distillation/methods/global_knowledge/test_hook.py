"""When prototypes are made, and what a training that is interrupted keeps of them."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from kd_search.distillation.methods.global_knowledge import generation
from kd_search.distillation.methods.global_knowledge.generation import (
    PrototypeGeneration,
    PrototypeHook,
)
from kd_search.engine import PersonSearchTrainer
from tests.distillation.methods.global_knowledge.prototype_setting import (
    CLUSTERS,
    KEY,
    bits,
    register,
    same,
    setting,
    setting_cfg,
    stopped_after,
    trainer_of,
    write_settings,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_settings(tmp_path_factory.mktemp("prototypes"))


# -------------------------------------------------------------------------------------- when it is


class Generation:
    """Stands in for :class:`PrototypeGeneration`; records when it was called."""

    num_images = 7

    def __init__(self, cfg, distiller, seed):
        self.distiller, self.seed = distiller, seed
        self.calls = []

    def pick(self):
        self.calls.append((self.trainer.iter, self.trainer.seed))
        return self.picks


def hook_of(monkeypatch, folders, *overrides, picks=True, start=0, terms=None):
    options = {} if terms is None else {"terms": terms}
    cfg, distiller = setting(folders, "rcnn", *overrides, **options)
    bank, made = distiller.companions["PrototypeBank"], []

    def make(*args):
        made.append(Generation(*args))
        made[-1].trainer = hook.trainer
        dims = [getattr(bank, f"{side}_0").shape[-1] for side in ("student", "teacher")]
        rows = [torch.ones(1, dim) for dim in dims]
        one = (0, 0, *rows, torch.zeros(1, dtype=torch.int64), torch.ones(1, 4))
        made[-1].picks = [one] if picks else []
        return made[-1]

    monkeypatch.setattr(generation, "PrototypeGeneration", make)
    hook = PrototypeHook(cfg, distiller)
    hook.trainer = SimpleNamespace(
        seed=11,
        start_iter=start,
        iter=start,
        max_iter=10,
        storage=EventStorage(),
        between_steps=EventStorage,
    )
    return hook, made, bank


def run(hook, start=0, end=10):
    hook.before_train()
    hook.trainer.start_iter = start
    for iteration in range(start, end):
        hook.trainer.iter = iteration
        hook.before_step()
        yield iteration


def test_prototypes_are_made_before_the_first_step_and_every_period(folders, monkeypatch):
    hook, made, bank = hook_of(monkeypatch, folders, KEY + "PERIOD", 4)
    next(run(hook))
    assert made[0].calls == [(0, 11)] and made[0].seed == 11 and bank.filled.sum() == 1
    list(run(hook))
    assert [iteration for iteration, _ in made[1].calls] == [0, 4, 8]
    # An epoch is seven images, two at a time.
    hook, made, bank = hook_of(monkeypatch, folders)
    list(run(hook))
    assert [iteration for iteration, _ in made[0].calls] == [0, 4, 8]
    value = hook.trainer.storage.latest()["prototypes/filled"][0]
    assert value == pytest.approx(1 / bank.filled.numel())


def test_a_resumed_training_keeps_those_of_its_checkpoint_until_the_next_are_due(
    folders, monkeypatch
):
    hook, made, bank = hook_of(monkeypatch, folders, KEY + "PERIOD", 4)
    bank.filled[0, 0, 0] = True
    list(run(hook, 3))
    assert [iteration for iteration, _ in made[0].calls] == [4, 8]
    list(run(hook, 8))
    assert [iteration for iteration, _ in made[1].calls] == [8]
    # A checkpoint without prototypes: they are made at once.
    bank.filled.fill_(False)
    list(run(hook, 3))
    assert [iteration for iteration, _ in made[2].calls] == [3, 4, 8]


def test_a_set_without_candidates_is_not_looked_through_in_every_step(folders, monkeypatch):
    hook, made, bank = hook_of(monkeypatch, folders, KEY + "PERIOD", 4, picks=False)
    list(run(hook))
    assert bank.is_empty and [iteration for iteration, _ in made[0].calls] == [0, 4, 8]


def test_terms_that_need_no_prototypes_look_at_no_image(folders, monkeypatch):
    hook, made, _ = hook_of(
        *(monkeypatch, folders, KEY + "WEIGHTED", False), terms=["WeightedFeatureTerm"]
    )
    assert list(run(hook, 0, 2)) == [0, 1] and not made


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("PERIOD", -1), ("IMAGES_PER_CLASS", 0), ("ALPHA", -0.5), ("PERCENTILE", 101.0)),
        ("BANDWIDTH", 0.0),
    ],
)
def test_keys_out_of_range_are_refused_before_training(folders, key, value):
    cfg, distiller = setting(folders, "rcnn")
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE[key] = value
    with pytest.raises(ValueError, match=f"GLOBAL_KNOWLEDGE.{key} {value}"):
        PrototypeHook(cfg, distiller)


# ------------------------------------------------------------------------------------- in training


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "last"), [("rcnn", 2), ("rcnn", 3), ("people", 2)])
def test_an_interrupted_training_ends_bit_for_bit_as_one_that_ran_through(
    folders, tmp_path, kind, last
):
    """With PERIOD 2 the last iteration 3 is followed by a generation, 2 is not."""
    overrides = (KEY + "PERIOD", 2, *(CLUSTERS if kind == "people" else ()))
    whole = trainer_of(folders, tmp_path / "whole", *overrides, kind=kind)
    whole.train()
    cls = stopped_after(last)
    stopped = trainer_of(folders, tmp_path / "cut", *overrides, kind=kind, cls=cls)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    saved = torch.load(tmp_path / "cut" / f"model_000000{last}.pth", weights_only=True)
    assert saved["prototypes"]["filled"].any()
    resumed = trainer_of(folders, tmp_path / "cut", *overrides, kind=kind, resume=True)
    assert resumed.start_iter == last + 1
    resumed_bank, whole_bank = (x.model.companions["PrototypeBank"] for x in (resumed, whole))
    same(bits(resumed_bank), saved["prototypes"])
    resumed.train()
    same(bits(resumed_bank), bits(whole_bank))
    same(resumed.model.student.state_dict(), whole.model.student.state_dict())
    same(resumed.model.terms.state_dict(), whole.model.terms.state_dict())
    assert whole.losses == {**stopped.losses, **resumed.losses} and len(whole.losses) == 6
    assert len(stopped.losses) == last + 1 and len(resumed.losses) == 5 - last
    assert all(losses["loss_global_knowledge"] > 0 for losses in whole.losses.values())
    # The generations differ, as the student does.
    assert not torch.equal(saved["prototypes"]["student_0"], whole_bank.student_0)


def test_a_signal_ends_a_generation_at_once_and_loses_no_step(folders, tmp_path, monkeypatch):
    trainer = trainer_of(folders, tmp_path, KEY + "PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 100)
    pick = PrototypeGeneration.pick
    calls = []

    def pick_or_die(self):
        calls.append(trainer.iter)
        if trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal did not end it")
        return pick(self)

    monkeypatch.setattr(PrototypeGeneration, "pick", pick_or_die)
    with pytest.raises(SystemExit, match="143"):
        trainer.train()
    assert calls == [0, 2]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    saved = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert saved["iteration"] == 1
    same(saved["prototypes"], bits(trainer.model.companions["PrototypeBank"]))
    assert trainer.model.student.training


def test_a_training_without_terms_has_no_hook(folders, tmp_path):
    register(folders / "rcnn", "rcnn")
    trainer = PersonSearchTrainer(setting_cfg(folders / "rcnn", "rcnn", output=tmp_path, terms=()))
    assert not any(isinstance(hook, PrototypeHook) for hook in trainer._hooks)
