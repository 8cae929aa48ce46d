"""A teacher of other classes than its student."""

import pytest
import torch

from kd_search.distillation import ClassMap


def test_probabilities_of_classes_behind_one_add_up():
    torch.manual_seed(0)
    logits = torch.randn(5, 5, dtype=torch.float64) * 3
    # Teacher 0, 1 -> student 1; 3 -> 0; 2 is background.
    mapped = ClassMap([[0, 1], [1, 1], [3, 0]], 4, 2).softmax_logits(logits)
    given, found = logits.softmax(dim=1), mapped.softmax(dim=1)
    torch.testing.assert_close(found[:, 0], given[:, 3])
    torch.testing.assert_close(found[:, 1], given[:, 0] + given[:, 1])
    torch.testing.assert_close(found[:, 2], given[:, 2] + given[:, 4])


def test_sigmoids_take_the_most_likely():
    logits = torch.tensor([[[0.1, 2.0, -3.0, 0.5]]])
    mapped = ClassMap([[0, 1], [1, 1], [3, 0]], 4, 2).sigmoid_logits(logits)
    assert mapped.tolist() == [[[0.5, 2.0]]]


def test_deltas_are_those_of_the_most_likely_class_behind():
    logits = torch.tensor([[1.0, 0.0, 9.0, 0.0, 0.0], [0.0, 1.0, 9.0, 0.0, 0.0]])
    deltas = torch.arange(32.0).reshape(2, 16)
    mapped = ClassMap([[0, 1], [1, 1], [3, 0]], 4, 2).deltas(deltas, logits)
    assert mapped[0].tolist() == [12, 13, 14, 15, 0, 1, 2, 3]
    assert mapped[1].tolist() == [28, 29, 30, 31, 20, 21, 22, 23]
    agnostic = torch.randn(2, 4)
    assert ClassMap([[0, 0]], 4, 1).deltas(agnostic, logits) is agnostic


def test_without_a_map_equal_classes_pass_as_they_are():
    logits = torch.randn(3, 5)
    assert ClassMap([], 4, 4).softmax_logits(logits) is logits


@pytest.mark.parametrize(
    "pairs, teacher, student, message",
    [
        ([], 80, 1, "80 classes.* 1: .*TEACHER.CLASS_MAP"),
        ([[4, 0]], 4, 1, r"CLASS_MAP.*\[4, 0\].*0\.\.3"),
        ([[0, 1]], 4, 1, r"CLASS_MAP.*\[0, 1\].*0\.\.0"),
        ([[0, 0], [0, 1]], 4, 2, "CLASS_MAP.*class 0"),
        ([[0, 0]], 4, 2, "CLASS_MAP.*class 1"),
        ([[0, 0, 1]], 4, 1, r"CLASS_MAP.*\[0, 0, 1\]"),
    ],
)
def test_mistakes_are_named(pairs, teacher, student, message):
    with pytest.raises(ValueError, match=message):
        ClassMap(pairs, teacher, student)
