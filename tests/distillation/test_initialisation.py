"""A student that starts with layers of its teacher."""

import logging

import pytest
import torch
from torch import nn

from kd_search.distillation import init_from_teacher


def network(width=4):
    return nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            "stem2": nn.Linear(2, 2),
            "head": nn.Linear(4, width),
        }
    )


def test_layers_are_copied_and_logged_by_name(caplog):
    torch.manual_seed(0)
    student, teacher = network(), network(7)
    teacher["stem"][1].running_mean.fill_(3.0)
    before = student["head"].weight.clone(), student["stem2"].weight.clone()
    with caplog.at_level(logging.INFO, "kd_search.distillation.initialisation"):
        names = init_from_teacher(student, teacher, ["stem"])
    assert len(names) == 7 and all(name.startswith("stem.") for name in names)
    assert torch.equal(student["stem"][0].weight, teacher["stem"][0].weight)
    assert (student["stem"][1].running_mean == 3).all()
    # Neither other modules nor one whose name only begins alike.
    assert torch.equal(student["head"].weight, before[0])
    assert torch.equal(student["stem2"].weight, before[1])
    assert student["stem"][0].weight.requires_grad
    (record,) = caplog.records
    assert record.getMessage() == (
        "Initialised from the teacher:\n"
        "  stem.0: weight, bias\n"
        "  stem.1: weight, bias, running_mean, running_var, num_batches_tracked"
    )


def test_pairs_rename_and_a_single_parameter_will_do(caplog):
    student, teacher = network(), network()
    with caplog.at_level(logging.INFO, "kd_search.distillation.initialisation"):
        names = init_from_teacher(student, teacher, [["head.bias", "stem.0.bias"]])
    assert names == ["head.bias"]
    assert torch.equal(student["head"].bias, teacher["stem"][0].bias)
    assert "  head: bias from stem.0" in caplog.text


def test_nothing_to_copy_is_no_news(caplog):
    with caplog.at_level(logging.INFO, "kd_search.distillation.initialisation"):
        assert init_from_teacher(network(), network(), []) == []
    assert not caplog.records


@pytest.mark.parametrize(
    "layers, message",
    [
        (["neck"], "INIT_FROM_TEACHER.*student.*'neck'"),
        ([["head", "neck"]], "INIT_FROM_TEACHER.*teacher.*'neck'"),
        (["head"], r"INIT_FROM_TEACHER.*head.weight.*\(4, 4\), head.weight .*\(7, 4\)"),
        ([["head", "stem"]], "INIT_FROM_TEACHER.*'head'.*'stem'"),
        ([["a", "b", "c"]], r"INIT_FROM_TEACHER.*\['a', 'b', 'c'\]"),
    ],
)
def test_mistakes_are_named_and_nothing_is_copied(layers, message):
    student, teacher = network(), network(7)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        init_from_teacher(student, teacher, ["stem", *layers])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
