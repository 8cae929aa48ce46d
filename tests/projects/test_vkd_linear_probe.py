"""The linear classifier of frozen features: its optimum, what it finds and what it cannot."""

import numpy as np
import pytest
import torch
from linear_probe import fit_linear_probe, largest_share
from torch.nn import functional as F  # noqa: N812

CAMERAS = np.array([1, 3, 4, 7])


def planted(count, strength, seed, dim=24):
    """Features of random numbers, with the camera along hidden directions of this strength."""
    directions = np.random.default_rng(99).normal(size=(len(CAMERAS), dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    camera = rng.integers(len(CAMERAS), size=count)
    return rng.normal(size=(count, dim)) + strength * directions[camera], CAMERAS[camera]


def test_planted_cameras_are_found_in_new_features():
    probe = fit_linear_probe(*planted(2000, 6.0, seed=0))
    features, cameras = planted(2000, 6.0, seed=1)
    assert probe.accuracy(features, cameras) > 0.98
    assert (probe.classes == CAMERAS).all()
    assert probe.accuracy(features, cameras) == (probe.predict(features) == cameras).mean()


def test_features_without_cameras_give_chance():
    probe = fit_linear_probe(*planted(2000, 0.0, seed=0))
    features, cameras = planted(4000, 0.0, seed=1)
    # Five standard deviations of a guess among four, sqrt(0.25 * 0.75 / 4000) each.
    assert abs(probe.accuracy(features, cameras) - 0.25) < 5 * 0.00685


@pytest.mark.parametrize("regulariser", [1e-3, 0.1])
def test_it_is_the_optimum_of_the_stated_problem(regulariser):
    features, cameras = planted(300, 1.0, seed=0)
    probe = fit_linear_probe(features, cameras, regulariser=regulariser)
    z = torch.from_numpy((features - features.mean(0)) / features.std(0))
    weights = torch.from_numpy(probe.weights).requires_grad_()
    bias = torch.from_numpy(probe.bias).requires_grad_()
    targets = torch.from_numpy(np.searchsorted(CAMERAS, cameras))
    loss = F.cross_entropy(z @ weights + bias, targets) + regulariser / 2 * weights.square().sum()
    gradients = torch.autograd.grad(loss, [weights, bias])
    # The problem is convex: where the gradient is zero, it is solved.
    assert max(g.abs().max() for g in gradients) < 1e-6
    assert probe.weights.any()


def test_same_numbers_every_time_in_any_order_and_unit():
    features, cameras = planted(400, 1.0, seed=0)
    first, again = fit_linear_probe(features, cameras), fit_linear_probe(features, cameras)
    assert (first.weights == again.weights).all() and (first.bias == again.bias).all()
    order = np.random.default_rng(5).permutation(400)
    other = fit_linear_probe(features[order] * 1e-3 + 7, cameras[order])
    np.testing.assert_allclose(other.weights, first.weights, atol=1e-4)
    test = planted(400, 1.0, seed=1)[0]
    assert (other.predict(test * 1e-3 + 7) == first.predict(test)).mean() > 0.99


def test_constant_features_are_harmless():
    features, cameras = planted(400, 6.0, seed=0)
    wide = np.concatenate([features, np.full((400, 1), 0.1), np.zeros((400, 1))], axis=1)
    probe = fit_linear_probe(wide, cameras)
    assert (probe.weights[-2:] == 0).all()
    np.testing.assert_allclose(
        probe.weights[:-2], fit_linear_probe(features, cameras).weights, atol=1e-4
    )


def test_largest_share():
    assert largest_share(np.array([4, 2, 4, 4, 9])) == 0.6
    with pytest.raises(ValueError, match="no labels"):
        largest_share(np.array([], dtype=int))


def test_mistakes_are_named():
    features, cameras = planted(10, 1.0, seed=0)
    with pytest.raises(ValueError, match="1 classes: at least two"):
        fit_linear_probe(features, np.zeros(10, dtype=int))
    with pytest.raises(ValueError, match="regulariser 0 must be above 0"):
        fit_linear_probe(features, cameras, regulariser=0)
    with pytest.raises(ValueError, match="labels"):
        fit_linear_probe(features, cameras[:9])
    probe = fit_linear_probe(features, cameras)
    with pytest.raises(ValueError, match="features"):
        probe.predict(features[:, :3])
    with pytest.raises(ValueError, match="no features"):
        probe.accuracy(features[:0], cameras[:0])
