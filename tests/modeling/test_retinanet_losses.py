"""DistillableRetinaNet's losses: Detectron2's, with the same bits in every process."""

import hashlib
import os
import sys

import pytest
import torch
from detectron2.modeling.meta_arch import retinanet
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss
from tiny_retinanet import batch, build, forward_train, object_input

from tests import forked


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
def test_losses_and_gradients_equal_detectron2s_over_several_steps(norm, loss_type, monkeypatch):
    """To the bit, but for torch's compiler: Detectron2's focal loss runs unscripted here."""
    monkeypatch.setattr(retinanet, "sigmoid_focal_loss_jit", sigmoid_focal_loss)
    overrides = ["MODEL.RETINANET.NORM", norm, "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", loss_type]
    if norm == "GN":
        overrides += ["MODEL.FPN.OUT_CHANNELS", 64]
    # Without objects in the second batch, the running normaliser of the losses moves elsewhere.
    batches = [batch(), [object_input((), seed=2), object_input((), seed=3)], batch()]
    theirs, ours = build("RetinaNet", *overrides), build("DistillableRetinaNet", *overrides)
    assert type(ours).__name__ == "DistillableRetinaNet" and type(theirs).__name__ == "RetinaNet"
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (theirs, ours)]
    for inputs in batches:
        steps = []
        for network, optimizer in zip((theirs, ours), optimizers):
            with EventStorage() as storage:
                losses = network(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            steps.append((losses, storage.latest()["num_pos_anchors"][0], network.loss_normalizer))
        assert steps[0] == steps[1]
        assert list(steps[0][0]) == ["loss_cls", "loss_box_reg"]
        for (name, a), b in zip(theirs.named_parameters(), ours.parameters()):
            assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(theirs.state_dict().items(), ours.state_dict().values()):
        assert torch.equal(a, b), name


def test_losses_and_gradients_equal_detectron2s_scripted_ones_to_rounding():
    theirs, ours = build("RetinaNet"), build()
    for inputs in [batch(), batch(), batch()]:  # torch compiles again after two calls
        steps = []
        for network in (theirs, ours):
            network.zero_grad()
            with EventStorage():
                losses = network(inputs)
            sum(losses.values()).backward()
            steps.append((losses, [p.grad for p in network.parameters()]))
        torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-7)


def test_a_process_that_has_trained_before_gets_the_same_bits():
    """As a run that never stopped and a resumed one, whose process is new."""
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__]
    done = forked.run(command, env=environment)
    assert done.returncode == 0, done.stderr
    digests = done.stdout.split()
    assert len(digests) == 5 and set(digests) == {digests[0]}


def print_gradients() -> None:
    """Digests of the gradients of one batch, computed over and over in a new process."""
    for _ in range(5):
        model = build()
        losses, _ = forward_train(model, batch())
        sum(losses.values()).backward()
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.grad.numpy().tobytes())
        print(digest.hexdigest())


if __name__ == "__main__":
    print_gradients()
