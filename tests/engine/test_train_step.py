"""One training step: what it changes, and that a skipped step changes nothing."""

import copy
import logging
import re

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tiny import tiny_cfg, training_input
from torch import nn

from kd_search.engine import TrainStep
from kd_search.engine.train_step import seed_everything
from tests.engine.toy import ToyLoader, ToyNetwork, toy_distiller


def make_step(network, **kwargs):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return TrainStep(model=network, optimizer=optimizer, seed=3, **kwargs)


def batch_of(iteration, *, bad=False):
    poison = [(iteration, 0)] if bad else []
    return next(iter(ToyLoader(0, iteration, poison=poison)))


def state_of(network):
    return copy.deepcopy(network.state_dict())


def changed(before, network):
    after = network.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def storage():
    with EventStorage() as storage:
        yield storage


def test_good_step_updates_weights_statistics_and_every_table(storage):
    network = toy_distiller()
    before = state_of(network)
    assert make_step(network).run(batch_of(0), 0)
    names = changed(before, network)
    assert {"student.conv.weight", "student.norm.running_mean"} <= names
    assert "terms.ToyTerm.table.rows" in names
    assert not network.student.id_table.has_staged
    losses = storage.latest()
    parts = [losses[k][0] for k in ("loss_box", "loss_oim", "loss_term")]
    assert losses["total_loss"][0] == pytest.approx(sum(parts))


def test_step_with_nan_loss_changes_nothing_and_names_the_images(storage, caplog):
    network = toy_distiller()
    step = make_step(network)
    step.run(batch_of(0), 0)
    before, optimizer = state_of(network), copy.deepcopy(step.optimizer.state_dict())
    with caplog.at_level(logging.WARNING):
        assert not step.run(batch_of(1, bad=True), 1)
    assert changed(before, network) == set()
    for old, new in zip(optimizer["state"].values(), step.optimizer.state_dict()["state"].values()):
        assert torch.equal(old["momentum_buffer"], new["momentum_buffer"])
    assert "rank 0: 2.jpg, 3.jpg" in caplog.text
    assert storage.latest()["skipped_steps"][0] == 1
    # The next step commits nothing of the bad batch either.
    assert step.run(batch_of(2), 2)
    assert all(torch.isfinite(v).all() for v in network.state_dict().values())


def test_batch_norm_statistics_would_be_poisoned_without_restoring(storage):
    """A NaN in an image of the toy reaches the running statistics, so the test above can fail."""
    network = ToyNetwork()
    batch = batch_of(0)
    batch[0]["image"] = batch[0]["image"] * float("nan")
    network.train()(batch)
    assert torch.isnan(network.norm.running_mean).any()
    network = ToyNetwork()
    before = state_of(network)
    assert not make_step(network).run(batch, 0)
    assert changed(before, network) == set()


def test_an_error_in_the_forward_pass_is_a_skipped_step_too(storage, caplog):
    """Detectron2's RPN raises on proposals that are not finite, before there is any loss."""
    torch.manual_seed(0)
    network = build_model(tiny_cfg())
    step = make_step(network)
    good, bad = [training_input()], [training_input(seed=1)]
    bad[0]["image"] = bad[0]["image"].float()
    bad[0]["image"][:, 40, 40] = float("nan")
    assert step.run(good, 0)
    before = state_of(network)
    with caplog.at_level(logging.WARNING):
        assert not step.run(bad, 1)
    assert changed(before, network) == set()
    assert "forward pass" in caplog.text and "picture1.jpg" in caplog.text
    assert step.run(good, 2)
    assert all(torch.isfinite(v).all() for v in network.state_dict().values())


class RootAtZero(nn.Module):
    """Loss 0, gradient infinite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, batch):
        return {"loss": self.weight.sqrt().sum()}


class Slope(nn.Module):
    """Has a constant gradient, and draws a random number in every forward pass."""

    def __init__(self, slope):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.slope = slope

    def forward(self, batch):
        self.drawn = torch.rand(()).item()
        return {"loss": 1 + self.slope * self.weight.sum()}


def test_gradients_of_the_step_before_are_gone(storage):
    network, reference = Slope(2.0), nn.Parameter(torch.zeros(3))
    step = make_step(network)
    optimizer = torch.optim.SGD([reference], lr=0.1, momentum=0.9)
    for iteration in range(3):
        step.run([], iteration)
        reference.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert torch.equal(network.weight, reference)


def test_a_large_gradient_is_a_finite_one(storage):
    """Its square is infinite in float32."""
    network = Slope(1e30)
    assert make_step(network).run([], 0)
    torch.testing.assert_close(network.weight, torch.full((3,), -1e29))


def test_every_rank_and_step_draws_numbers_of_its_own(storage, monkeypatch):
    network = Slope(1.0)
    step = make_step(network)
    seed_everything(step.seed, 0)
    # Including the numbers that initial weights are drawn from.
    drawn = [torch.rand(()).item()]
    for rank in (0, 1, 2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        for iteration in range(3):
            step.run([], iteration)
            drawn.append(network.drawn)
    assert len(set(drawn)) == 10


def test_logged_losses_are_means_over_ranks(storage, monkeypatch):
    """As if a second rank had the same."""
    monkeypatch.setattr("kd_search.engine.train_step.sum_over_ranks", lambda values: 2 * values)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    make_step(Slope(1.0)).run([], 0, data_time=0.5)
    latest = storage.latest()
    assert (latest["total_loss"][0], latest["data_time"][0]) == (1, 0.5)


def test_infinite_gradient_of_a_finite_loss_skips_the_step(storage, caplog):
    network = RootAtZero()
    step = make_step(network)
    assert not step.run([{"file_name": "a.jpg"}], 0)
    assert step.skipped_steps == 1 and re.search("gradient .*a.jpg", caplog.text)
    assert torch.equal(network.weight, torch.zeros(3))


def test_so_many_skipped_steps_in_a_row_end_with_an_error_naming_all_images(storage):
    step = make_step(ToyNetwork(), max_skipped_steps=3)
    step.run(batch_of(0, bad=True), 0)
    step.run(batch_of(1, bad=True), 1)
    assert step.run(batch_of(2), 2)
    assert (step.skipped_in_row, step.skipped_steps) == (0, 2)
    step.run(batch_of(3, bad=True), 3)
    step.run(batch_of(4, bad=True), 4)
    with pytest.raises(FloatingPointError, match="3 steps") as caught:
        step.run(batch_of(5, bad=True), 5)
    message = str(caught.value)
    assert "6.jpg, 7.jpg" in message and "8.jpg" in message and "10.jpg" in message
    assert "0.jpg, 1.jpg" not in message


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_scaler_skips_infinite_gradients_but_not_for_ever(storage):
    """On the CPU the scaler works, and autocast does nothing."""
    network = RootAtZero()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    step = make_step(network, grad_scaler=scaler, max_skipped_steps=2)
    for iteration in range(20):
        assert step.run([{"file_name": "a.jpg"}], iteration)
    assert scaler.get_scale() == 64.0 / 2**20
    assert torch.equal(network.weight, torch.zeros(3)) and step.skipped_steps == 0
    with pytest.raises(FloatingPointError, match="mixed precision.*iteration 20"):
        step.run([{"file_name": "a.jpg"}], 20)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_scaled_step_equals_the_plain_one(storage):
    networks = [ToyNetwork(), ToyNetwork()]
    networks[1].load_state_dict(networks[0].state_dict())
    for network, scaler in zip(networks, (None, torch.amp.GradScaler("cpu", init_scale=8.0))):
        make_step(network, grad_scaler=scaler).run(batch_of(0), 0)
    for name, value in networks[0].state_dict().items():
        torch.testing.assert_close(value, networks[1].state_dict()[name], msg=name)


def test_randomness_depends_on_seed_and_iteration_not_on_what_ran_before(storage):
    networks = [ToyNetwork(), ToyNetwork(), ToyNetwork()]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())
    torch.rand(17)
    for network, iteration in zip(networks, (5, 5, 6)):
        make_step(network).run(batch_of(0), iteration)
        torch.rand(3)
    same, again, other = (network.conv.weight for network in networks)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_model_left_in_evaluation_mode_is_an_error(storage):
    network = ToyNetwork()
    step = make_step(network)
    network.eval()
    with pytest.raises(RuntimeError, match="mode"):
        step.run(batch_of(0), 0)
