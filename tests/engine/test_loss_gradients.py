"""Gradients of single losses: by hand, and of a training on the command line."""

import json
import re

import pytest
import torch
from torch import nn

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.cli import gradients as tool
from kd_search.engine import loss_gradients
from tests.distillation.methods.global_knowledge.prototype_setting import (
    register,
    setting,
    write_settings,
)


class Losses(nn.Module):
    """Of weights w = (3, 4) and a batch (x,): x |w|^2 / 2, whose gradient is x w; and others."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.elsewhere = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        (x,) = batch
        return {
            "loss_square": x * self.weights.square().sum() / 2,
            "loss_elsewhere": 7 * self.elsewhere,
            "loss_constant": torch.tensor(2.0),
        }


def test_norms_and_values_are_means_over_batches_and_nothing_is_trained():
    model = Losses()
    found = loss_gradients(model, [[1.0], [3.0]], [model.weights])
    assert list(found) == ["loss_square", "loss_elsewhere", "loss_constant"]
    assert found["loss_square"].value == pytest.approx((12.5 + 37.5) / 2)
    assert found["loss_square"].norm == pytest.approx((5 + 15) / 2)
    assert (found["loss_elsewhere"].value, found["loss_elsewhere"].norm) == (7, 0)
    assert (found["loss_constant"].value, found["loss_constant"].norm) == (2, 0)
    assert model.weights.tolist() == [3, 4] and model.weights.grad is None


def test_nothing_to_measure_is_refused():
    model = Losses()
    with pytest.raises(ValueError, match="batch"):
        loss_gradients(model, [], [model.weights])
    model.weights.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters"):
        loss_gradients(model, [[1.0]], [model.weights])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config file, checkpoint) of a student with prototypes and a teacher."""
    folders = write_settings(tmp_path_factory.mktemp("gradients"))
    cfg, distiller = setting(folders, "rcnn", "SEED", 3)
    register(folders / "rcnn", "rcnn")
    bank = distiller.companions["PrototypeBank"]
    for level in range(bank.num_levels):
        sides = [getattr(bank, f"{side}_{level}")[0] for side in ("student", "teacher")]
        images, boxes = torch.zeros(len(sides[0]), dtype=torch.int64), torch.ones(len(sides[0]), 4)
        bank.put(level, 0, *(torch.rand_like(x) for x in sides), images, boxes)
    PersonSearchCheckpointer(distiller, str(folders), save_to_disk=True).save("model_final")
    (folders / "config.yaml").write_text(cfg.dump())
    return folders / "config.yaml", folders / "model_final.pth"


def test_every_loss_of_a_distilled_training_is_listed(run, tmp_path, capsys):
    config, checkpoint = map(str, run)
    words = ["--config-file", config, "--checkpoint", checkpoint, "--batches", "2"]
    output = tmp_path / "gradients.json"
    assert tool.main([*words, "--output", str(output)]) == 0
    losses = json.loads(output.read_text())["losses"]
    assert {"loss_cls", "loss_rpn_cls", "loss_feature_background"} < losses.keys()
    # With the prototypes of the checkpoint; without any it is exactly 0.
    assert losses["loss_global_knowledge"]["value"] > 0
    assert losses["loss_cls"]["norm"] > 0 and losses["loss_feature_background"]["norm"] > 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 + len(losses)
    norms = [float(line.split()[-1]) for line in lines[1:]]
    assert norms == sorted(norms, reverse=True)
    # The same batches and samples again.
    assert tool.main([*words, "--output", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_text() == output.read_text()
    # A loss on feature maps has no gradient at the heads.
    assert tool.main([*words, "--layer", "roi_heads", "--output", str(output)]) == 0
    losses = json.loads(output.read_text())["losses"]
    assert losses["loss_feature_background"]["norm"] == 0 < losses["loss_cls"]["norm"]


def test_weights_of_another_network_are_refused(run, tmp_path, capsys):
    other = tmp_path / "other.pth"
    torch.save({"model": {"elsewhere.weight": torch.zeros(1)}}, other)
    assert tool.main(["--config-file", str(run[0]), "--checkpoint", str(other)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("gradients:") and "other.pth" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "back"], "--layer back: .*backbone"),
        (["--batches", "0"], "--batches"),
        (["--checkpoint", "absent.pth"], "absent.pth"),
    ],
)
def test_bad_input_is_one_line(run, capsys, options, message):
    config, checkpoint = map(str, run)
    words = ["--config-file", config, "--checkpoint", checkpoint, *options]
    assert tool.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert re.match(f"gradients: .*{message}", error) and "\n" not in error
