"""Properties that all losses share: precision, gradients, empty batches, NaN, wrong shapes."""

import re
from dataclasses import dataclass
from typing import Callable, Optional

import pytest
import torch

from kd_search.losses import (
    batch_hard_triplet,
    bounded_regression,
    distance_preservation,
    global_knowledge_loss,
    hint_loss,
    identity_kl,
    logits_squared_error,
    oim_logits,
    oim_loss,
    pairwise_relation_loss,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    teacher_l2,
    triplet_relation_loss,
    weighted_binary_soft_labels,
    weighted_feature_loss,
    weighted_soft_labels,
)
from tests.losses.helpers import gradient_of, identities, random


@dataclass
class Case:
    """A loss of student and teacher tensors; what else it needs follows from their shape and type.

    Attributes:
        shape: of the tensors, the batch first.
        scale: of the random numbers; at 300 the squares are beyond float16.
        factor: of the loss where its gradient is to fit into float16.
        by_row: the loss of a row depends on the student's row alone.
        free_columns: student and teacher may have different numbers of columns.
        at_teacher: largest gradient, in float64 and half precision, where student and teacher are
            equal and the loss is exactly 0; ``None``: it is not 0 there.
    """

    loss: Callable
    shape: tuple = (9, 4)
    scale: float = 300.0
    factor: float = 1.0
    by_row: bool = True
    free_columns: bool = False
    at_teacher: Optional[float] = 0.0

    def pair(self, dtype=torch.float64):
        return [random(*self.shape, seed=s, dtype=dtype, scale=self.scale) for s in (0, 1)]


def constant(like, *shape, seed=2):
    """The same numbers in all types, exactly."""
    return random(*shape, seed=seed).bfloat16().to(like.dtype)


def weights_of(student, *shape):
    return constant(student, len(student), *shape).abs().clamp(max=1)


def feature_loss(student, teacher):
    weights = weights_of(student, *student.shape[2:])
    return torch.stack(weighted_feature_loss(student, teacher, weights, weights > 0.5))


def knowledge_loss(student, teacher):
    prototypes = constant(student, 5, student.shape[-1])
    return global_knowledge_loss(student, teacher, prototypes, prototypes, weights_of(student))


def oim(embeddings, _):
    rows, queue = constant(embeddings, 6, 4), constant(embeddings, 3, 4, seed=3)
    return oim_loss(oim_logits(embeddings, rows, queue, 0.1), identities(len(embeddings)), 6)


def logits_case(loss, **options):
    return Case(loss, scale=2.0, **options)


MAPS = {"shape": (2, 3, 4, 5), "by_row": False}
CASES = {
    "bounded regression": Case(lambda s, t: bounded_regression(s, t, constant(s, *s.shape))),
    "teacher L2": Case(teacher_l2),
    "KL student teacher": logits_case(lambda s, t: identity_kl(s, t, 2.0), at_teacher=1e-5),
    "KL teacher student": logits_case(
        lambda s, t: identity_kl(s, t, 2.0, "teacher_student"), at_teacher=1e-5
    ),
    "logits squared error": Case(logits_squared_error),
    "soft labels": logits_case(soft_cross_entropy, at_teacher=None),
    "binary soft labels": logits_case(soft_binary_cross_entropy, at_teacher=None),
    "focal soft labels": logits_case(lambda s, t: soft_binary_cross_entropy(s, t, focal_gamma=2.0)),
    "weighted soft labels": logits_case(
        lambda s, t: weighted_soft_labels(s, t, weights_of(s)), at_teacher=None
    ),
    "weighted binary soft labels": logits_case(
        lambda s, t: weighted_binary_soft_labels(s, t, weights_of(s)), at_teacher=1e-5
    ),
    "pairwise relations": Case(pairwise_relation_loss, by_row=False, free_columns=True),
    "triplet relations": Case(
        lambda s, t: triplet_relation_loss(s, t, identities(len(s)), 1.0), at_teacher=None
    ),
    "distances, mean": Case(distance_preservation, factor=1e-4, by_row=False, free_columns=True),
    "distances, sum": Case(
        lambda s, t: distance_preservation(s, t, "sum"),
        factor=1e-6,
        by_row=False,
        free_columns=True,
    ),
    "hint, l2": Case(lambda s, t: hint_loss(s, t, "l2"), **MAPS),
    "hint, l1": Case(lambda s, t: hint_loss(s, t, "l1"), **MAPS),
    "weighted features": Case(feature_loss, **MAPS),
    "global knowledge": Case(knowledge_loss, free_columns=True),
}
ALONE = {
    "triplet, soft": Case(lambda s, _: batch_hard_triplet(s, identities(len(s)))[0], by_row=False),
    "triplet, margin": Case(
        lambda s, _: batch_hard_triplet(s, identities(len(s)), 0.3)[0], by_row=False
    ),
    "OIM": Case(oim, scale=1.0, by_row=False),
}


def each(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


@each({**CASES, **ALONE})
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case, dtype):
    student, teacher = case.pair(dtype)
    losses = case.loss(student, teacher)
    assert losses.dtype == torch.float32 and losses.isfinite().all() and losses.sum() > 0
    assert torch.equal(losses, case.loss(student.float(), teacher.float()))
    gradient = gradient_of(lambda s: case.factor * case.loss(s, teacher), student)
    assert gradient.dtype == dtype and gradient.isfinite().all()


@each({**CASES, **ALONE})
def test_autocast_does_not_lower_the_precision(case):
    student, teacher = case.pair(torch.float32)
    expected = case.loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = case.loss(student, teacher)
    assert losses.dtype == torch.float32 and torch.equal(losses, expected)


@each({**CASES, **ALONE})
def test_an_empty_batch_keeps_the_graph_of_the_layers_before(case):
    weight = torch.ones((), requires_grad=True)
    empty = torch.zeros(0, *case.shape[1:])
    total = case.loss(weight * empty, empty).sum()
    assert total.item() == 0.0
    total.backward()
    assert weight.grad.item() == 0.0


@each({**CASES, **ALONE})
def test_nan_of_the_student_is_not_hidden(case):
    student, teacher = case.pair()
    student[1].view(-1)[2] = torch.nan
    is_nan = case.loss(student, teacher).isnan()
    if case.by_row:
        assert is_nan.view(len(student), -1).any(dim=1).tolist() == [
            row == 1 for row in range(len(student))
        ]
    assert is_nan.any()


@each(CASES)
def test_only_the_student_gets_a_gradient(case):
    student, teacher = (tensor.requires_grad_() for tensor in case.pair())
    case.loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@each({name: case for name, case in CASES.items() if case.at_teacher is not None})
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_student_equal_to_its_teacher_has_no_loss(case, dtype):
    student, _ = case.pair(dtype)
    losses = case.loss(student, student.clone())
    assert torch.equal(losses, torch.zeros_like(losses))
    gradient = gradient_of(case.loss, student, student.clone())
    assert gradient.abs().max() <= case.at_teacher


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (name, part)
        for name, case in CASES.items()
        for part in (slice(1), slice(-1), 0, (..., slice(1)), (..., slice(-1)))
        if not (case.free_columns and isinstance(part, tuple))
    ],
    ids=str,
)
def test_tensors_of_other_shapes_are_refused(name, part):
    """Most of them would be broadcast otherwise."""
    student, teacher = CASES[name].pair()
    other = teacher[part]
    ours, theirs = (re.escape(str(tuple(tensor.shape))) for tensor in (student, other))
    with pytest.raises(ValueError, match=rf"student\w* {ours}, teacher\w* {theirs}"):
        CASES[name].loss(student, other)
