"""Checkpoints that are none: one line before anything is loaded, or a training that goes on."""

import logging
import os
from pathlib import Path

import detectron2
import pytest
import torch

from kd_search.checkpoint import PersonSearchCheckpointer
from tests.engine.toy import ToyTrainer, everything, toy_cfg
from tests.hostile import change, changes, lengths, places, refused, try_examples

OLD = Path(__file__).resolve().parents[1] / "old_files"
NAME = "model_0000003.pth"
pytestmark = pytest.mark.skipif(
    detectron2.__version__ != "0.5",
    reason="the checkpoint is of Detectron2 0.5: later ones group parameters in another way",
)

WEIGHT = torch.ones(4, 3, 3, 3)
#: In the place of a weight or of a number of the optimizer.
WRONG_TENSORS = (
    WEIGHT.to_sparse(),
    WEIGHT.to(torch.complex64),
    torch.ones(7),
    {"conv.weight": WEIGHT},
)


def whole():
    return torch.load(OLD / NAME, weights_only=True)


def at(iteration):
    """The checkpoint as of another iteration."""
    checkpoint = whole()
    for state in (checkpoint["scheduler"], checkpoint["trainer"]["hooks"]["LRScheduler"]):
        state["last_epoch"] = iteration + 1
    checkpoint["trainer"]["iteration"] = iteration
    return {**checkpoint, "iteration": iteration}


def write(folder: Path, checkpoint) -> Path:
    torch.save(checkpoint, folder / NAME)
    (folder / "last_checkpoint").write_text(NAME)
    return folder / NAME


def state_of(trainer):
    state = everything(trainer)
    return [*state.pop("model").values(), repr(state), trainer.start_iter, trainer.iter]


def unchanged(before, after) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after)
    )


@lengths(150, 3000)
def test_a_wrong_field_is_refused_before_anything_is_loaded_or_training_goes_on(
    tmp_path, monkeypatch, examples
):
    # Most of the time would be spent on logs and files that this test does not read.
    monkeypatch.setattr(ToyTrainer, "build_writers", lambda self: [])
    monkeypatch.setattr(PersonSearchCheckpointer, "save", lambda *args, **kwargs: None)
    logging.disable(logging.CRITICAL)
    outcomes = set()
    cfg = toy_cfg(tmp_path)

    def check(checkpoint):
        path = write(tmp_path, checkpoint)
        trainer = ToyTrainer(cfg)
        before = state_of(trainer)
        if refused(lambda: trainer.resume_or_load(resume=True), path):
            assert unchanged(before, state_of(trainer))
            outcomes.add("refused")
            return
        assert 0 <= trainer.start_iter <= trainer.max_iter
        try:
            trainer.train()
            outcomes.add("trained")
        except FloatingPointError:
            # A learning rate of 1e308, say, is a number.
            outcomes.add("not finite")

    try:
        try_examples(examples, check, changes(whole(), WRONG_TENSORS))
    finally:
        logging.disable(logging.NOTSET)
    assert outcomes >= {"refused", "trained"}


def put(*path):
    """``put(..., key, value)``: the checkpoint with another value in one place."""

    def spoil(checkpoint):
        holder = checkpoint
        for key in path[:-2]:
            holder = holder[key]
        holder[path[-2]] = path[-1]

    return spoil


@pytest.mark.parametrize(
    "spoil, field",
    [
        (put("model", []), "model"),
        (put("model", None), "model"),
        (put("model", {}), "model"),
        (put("model", 5, WEIGHT), r"model\[5\]"),
        (put("model", "conv.weight", "text"), r"model\['conv.weight'\]"),
        (put("model", "conv.weight", None), r"model\['conv.weight'\]"),
        (put("model", "conv.weight", WEIGHT.to_sparse()), r"model\['conv.weight'\] .*sparse"),
        (put("model", "conv.weight", WEIGHT.to(torch.complex64)), r"conv.weight'\] .*complex64"),
        (put("model", "norm.num_batches_tracked", torch.tensor(2.5)), "num_batches_tracked"),
        (put("iteration", "3"), "iteration .*'3'"),
        (put("iteration", -1), "iteration .*-1"),
        (put("iteration", 1e20), "iteration"),
        (put("iteration", True), "iteration"),
        (put("iteration", None), "iteration"),
        (put("iteration", 10**20), "iteration"),
        (put("trainer", None), "trainer"),
        (put("trainer", "iteration", None), r"trainer\.iteration"),
        (put("trainer", "seed", -1), r"trainer\.seed .*-1"),
        (put("trainer", "seed", "7"), r"trainer\.seed .*'7'"),
        (put("trainer", "seed", 10**70), r"trainer\.seed"),
        (put("trainer", "skipped_steps", -4), r"trainer\.skipped_steps"),
        (put("trainer", "loss_normalizers", {"": "x"}), r"trainer\.loss_normalizers"),
        (put("trainer", "hooks", "LRScheduler", 3), r"trainer\.hooks\.LRScheduler"),
        (put("trainer", "hooks", "LRScheduler", {"last_epoch": "3"}), "LRScheduler.last_epoch"),
        (put("optimizer", []), "optimizer"),
        (put("optimizer", "state", 0, "momentum_buffer", torch.ones(7)), r"state\[0\].*\(7,\)"),
        (put("optimizer", "state", 0, "momentum_buffer", True), r"state\[0\].*found True"),
        (put("optimizer", "state", 77, {}), r"optimizer\.state\[77\]"),
        (put("optimizer", "param_groups", 0, "lr", "0.1"), r"param_groups\[0\]\.lr"),
        (put("optimizer", "param_groups", 0, "lr", -0.1), r"param_groups\[0\]\.lr"),
        (put("optimizer", "param_groups", 0, "momentum", None), r"param_groups\[0\]\.momentum"),
        (put("optimizer", "param_groups", 0, "maximize", True), r"param_groups\[0\]\.maximize"),
        (put("optimizer", "param_groups", 0, "params", []), "groups of"),
        (put("scheduler", None), "scheduler"),
        (put("scheduler", "last_epoch", -7), r"scheduler\.last_epoch"),
        (put("scheduler", "last_epoch", 7), r"scheduler\.last_epoch 7 .*iteration 3"),
        (put("scheduler", "base_lrs", None), r"scheduler\.base_lrs .*None"),
        (put("scheduler", "base_lrs", [0.1] * 9), r"scheduler\.base_lrs"),
        (put("scheduler", "get_lr", 5), r"scheduler\.'get_lr'"),
        (put("scheduler", "optimizer", 5), r"scheduler\.'optimizer'"),
    ],
)
def test_the_field_is_named(tmp_path, spoil, field):
    checkpoint = whole()
    spoil(checkpoint)
    write(tmp_path, checkpoint)
    trainer = ToyTrainer(toy_cfg(tmp_path))
    before = state_of(trainer)
    with pytest.raises(ValueError, match=rf"{NAME}: .*{field}") as error:
        trainer.resume_or_load(resume=True)
    assert "\n" not in str(error.value)
    assert unchanged(before, state_of(trainer))


def test_names_of_parameters_and_groups_may_be_there(tmp_path):
    """torch saves them where an optimizer was made from named parameters."""
    checkpoint = whole()
    for group in checkpoint["optimizer"]["param_groups"]:
        group.update(name="backbone", param_names=["x"] * len(group["params"]))
    write(tmp_path, checkpoint)
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4


def test_an_older_checkpoint_is_taken_where_the_last_is_none(tmp_path):
    checkpoint = whole()
    write(tmp_path, at(2))
    os.rename(tmp_path / NAME, tmp_path / "model_0000002.pth")
    write(tmp_path, {**checkpoint, "trainer": None})
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3


@pytest.mark.parametrize("scaler, fits", [({}, True), ({"scale": "x"}, False), (None, False)])
def test_the_state_of_a_gradient_scaler_is_checked(tmp_path, scaler, fits):
    class Scaler:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self.state = state

    torch.save({"model": {"weight": torch.ones(1, 2)}, "grad_scaler": scaler}, tmp_path / "a.pth")
    own = Scaler()
    checkpointer = PersonSearchCheckpointer(torch.nn.Linear(2, 1), grad_scaler=own)
    path = str(tmp_path / "a.pth")
    assert refused(lambda: checkpointer.load(path), path) != fits
    assert hasattr(own, "state") == fits


def test_weights_alone_do_not_need_a_sound_training_state(tmp_path):
    """Only what is loaded is checked: others keep other things beside their weights."""
    checkpoint = {"model": {"weight": torch.ones(1, 2)}, "optimizer": "Adam", "iteration": "last"}
    torch.save(checkpoint, tmp_path / "a.pth")
    network = torch.nn.Linear(2, 1, bias=False)
    rest = PersonSearchCheckpointer(network).load(str(tmp_path / "a.pth"))
    assert torch.equal(network.weight, torch.ones(1, 2)) and rest["optimizer"] == "Adam"


@pytest.mark.parametrize("iteration, status", [(6, "on"), (7, "finished"), (8, "beyond")])
def test_a_finished_run_stays_finished_and_one_beyond_the_end_is_refused(
    tmp_path, caplog, iteration, status
):
    caplog.set_level(logging.INFO)
    write(tmp_path, at(iteration))
    trainer = ToyTrainer(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 8))
    if status == "beyond":
        with pytest.raises(ValueError, match=rf"{NAME} .*iteration 8, .*SOLVER.MAX_ITER 8"):
            trainer.resume_or_load(resume=True)
        return
    trainer.resume_or_load(resume=True)
    assert ("finished run" in caplog.text) == (status == "finished")
    trainer.train()


def test_places_and_ways_reach_every_part():
    """The mutator of these tests changes what it says."""
    tree = {"a": [1, {"b": [0, 0, 4, 4]}], "c": "x"}
    assert places(tree)[:3] == [("a",), ("a", 0), ("a", 1)]
    assert change(tree, ("a", 1, "b"), 0) == {"a": [1, {"b": None}], "c": "x"}
    assert tree["a"][1] == {"b": [0, 0, 4, 4]}
