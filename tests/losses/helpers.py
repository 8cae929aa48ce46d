"""Random tensors, gradients, and scalar functions of the slow references, for tests of losses."""

import math

import torch


def random(*shape, seed=0, dtype=torch.float64, scale=1.0):
    """Normally distributed numbers, the same in all types up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def identities(num_rows, seed=0, num_people=4):
    """A few people, some unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, num_people, (num_rows,), generator=generator)


def gradient_of(function, student, *arguments, **options):
    """Gradient of the sum of the losses at ``student``, which stays a leaf without gradient."""
    student = student.detach().clone().requires_grad_()
    function(student, *arguments, **options).sum().backward()
    return student.grad


def slow_softmax(row, temperature=1.0):
    scores = [math.exp(value / temperature) for value in row]
    return [score / sum(scores) for score in scores]


def slow_sigmoid(value):
    return 1 / (1 + math.exp(-value))


def slow_squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b))


def slow_distance(a, b):
    return math.sqrt(slow_squared(a, b))


def slow_cosine(a, b):
    product = sum(x * y for x, y in zip(a, b))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
