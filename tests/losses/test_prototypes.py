"""Joint matching pursuit against its direct definition, which holds (K, D, N) tensors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from kd_search.losses import (
    density_filter,
    joint_moments,
    joint_weights,
    match_prototypes,
    pursuit_weights,
    select_prototypes,
)

GOLDEN_PICKS = [32, 39, 5, 2, 35]
GOLDEN_ENERGIES = [
    80.0,
    67.30710230956932,
    56.71636709494531,
    47.549562819462764,
    40.35921907184508,
    34.53296789194479,
]


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def instances(num_rows, student_dims=7, teacher_dims=5, seed=0, dtype=torch.float64):
    """Unit features of the same boxes in two spaces; the spaces know of each other."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(num_rows, student_dims, generator=generator, dtype=torch.float64)
    bridge = torch.randn(student_dims, teacher_dims, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_rows, teacher_dims, generator=generator, dtype=torch.float64)
    teacher = student @ bridge / math.sqrt(student_dims) + 0.5 * noise
    return unit(student).to(dtype), unit(teacher).to(dtype)


def direct_pursuit(student, teacher, candidates, num_prototypes, alpha):
    """The definition, (K, D, N) tensors and all: picks, weights, residual energies, E of picks.

    A candidate picked before is left out, which the paper does not do.
    """
    f_s, f_t = student[candidates], teacher[candidates]
    r_s, r_t = student.clone().t(), teacher.clone().t()  # (D, N)
    picks, weights = [], []
    energies, least = [(r_s.square().sum() + r_t.square().sum()).item()], []
    for _ in range(min(num_prototypes, len(candidates))):
        a, b = f_s @ r_s, f_t @ r_t
        w_s = (alpha * (a + b) + a) / (1 + 2 * alpha)
        w_t = (alpha * (a + b) + b) / (1 + 2 * alpha)
        rest_s = w_s[:, None, :] * f_s[:, :, None] - r_s[None]
        rest_t = w_t[:, None, :] * f_t[:, :, None] - r_t[None]
        error = rest_s.square().sum(dim=(1, 2)) + rest_t.square().sum(dim=(1, 2))
        error = error + alpha * (w_s - w_t).square().sum(dim=1)
        error[picks] = math.inf
        # Of errors that are equal but for rounding the first.
        k = int((error <= error.min() + 1e-12 * energies[0]).nonzero()[0])
        picks.append(k)
        weights.append((w_s[k], w_t[k]))
        least.append(error[k].item())
        r_s = r_s - f_s[k][:, None] * w_s[k]
        r_t = r_t - f_t[k][:, None] * w_t[k]
        energies.append((r_s.square().sum() + r_t.square().sum()).item())
    return picks, weights, energies, least


@settings(max_examples=80)
@given(
    num_rows=st.integers(1, 14),
    student_dims=st.integers(2, 9),
    teacher_dims=st.integers(2, 9),
    share=st.sampled_from([0.4, 1.0]),
    num_prototypes=st.integers(0, 8),
    alpha=st.sampled_from([0.0, 0.7, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_direct_definition(
    num_rows, student_dims, teacher_dims, share, num_prototypes, alpha, seed
):
    student, teacher = instances(num_rows, student_dims, teacher_dims, seed)
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randperm(num_rows, generator=generator)[: math.ceil(share * num_rows)]
    picks, weights, energies, _ = direct_pursuit(
        student, teacher, candidates, num_prototypes, alpha
    )
    found = select_prototypes(
        student, teacher, candidates, num_prototypes=num_prototypes, alpha=alpha
    )
    assert found.indices.dtype == torch.int64
    assert found.indices.tolist() == candidates[picks].tolist()
    assert found.energies.tolist() == pytest.approx(energies, rel=1e-9, abs=1e-9)

    ours = pursuit_weights(student, teacher, student[found.indices], teacher[found.indices], alpha)
    for side in (0, 1):
        assert ours[side].shape == (num_rows, len(picks))
        for p, pair in enumerate(weights):
            torch.testing.assert_close(ours[side][:, p], pair[side], rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.7, 2.0])
def test_picks_of_spaces_that_are_nearly_used_up_are_those_of_the_definition(alpha):
    """So many that what a pick leaves along the difference of the spaces decides."""
    student, teacher = instances(40, 7, 5)
    picks, _, energies, _ = direct_pursuit(student, teacher, torch.arange(40), 12, alpha)
    found = select_prototypes(student, teacher, num_prototypes=12, alpha=alpha)
    assert found.indices.tolist() == picks
    assert found.energies.tolist() == pytest.approx(energies, rel=1e-9)


def test_equals_the_direct_definition_at_a_larger_size():
    student, teacher = instances(150, 32, 48, seed=5)
    candidates = density_filter(student, teacher, bandwidth=0.6).nonzero()[:, 0]
    assert 30 < len(candidates) < 100
    picks, _, energies, _ = direct_pursuit(student, teacher, candidates, 25, 10.0)
    found = select_prototypes(student, teacher, candidates, num_prototypes=25)
    assert found.indices.tolist() == candidates[picks].tolist()
    assert found.energies.tolist() == pytest.approx(energies, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 10.0])
def test_gain_of_the_docstring_is_what_a_pick_takes_from_the_error(alpha):
    student, teacher = instances(12, seed=2)
    everybody = torch.arange(12)
    picks, _, energies, least = direct_pursuit(student, teacher, everybody, 3, alpha)
    r_s, r_t = student, teacher
    for p, k in enumerate(picks):
        a, b = r_s @ student[k], r_t @ teacher[k]
        gain = ((a + b) ** 2 + (a - b) ** 2 / (1 + 2 * alpha)).sum().item() / 2
        assert energies[p] - gain == pytest.approx(least[p], rel=1e-12)
        assert energies[p + 1] <= energies[p] - gain + 1e-12
        w_s, w_t = joint_weights(a, b, alpha)
        r_s, r_t = r_s - torch.outer(w_s, student[k]), r_t - torch.outer(w_t, teacher[k])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_closed_form_weights_minimise_the_error(seed, alpha):
    (f_s, f_t), (r_s, r_t) = (
        [rows[0] for rows in instances(1, seed=seed)],
        [3 * rows[0] for rows in instances(1, seed=seed + 50)],
    )

    def error(weights):
        w_s, w_t = weights
        return float(
            (w_s * f_s - r_s).square().sum()
            + (w_t * f_t - r_t).square().sum()
            + alpha * (w_s - w_t) ** 2
        )

    found = minimize(error, [0.0, 0.0], method="BFGS", options={"gtol": 1e-10})
    weights = joint_weights(f_s @ r_s, f_t @ r_t, alpha)
    assert [weight.item() for weight in weights] == pytest.approx(found.x, abs=1e-6)
    closed = error([weight.item() for weight in weights])
    assert closed <= found.fun + 1e-12
    for step in ([1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3], [1e-3, 1e-3], [-1e-3, -1e-3]):
        assert error([weight.item() + part for weight, part in zip(weights, step)]) > closed


def test_weights_between_alone_and_together():
    a, b = torch.tensor([0.8, -0.2]), torch.tensor([0.2, 0.6])
    alone = joint_weights(a, b, 0.0)
    assert torch.equal(alone[0], a) and torch.equal(alone[1], b)
    for weight in joint_weights(a, b, 1e9):
        torch.testing.assert_close(weight, torch.tensor([0.5, 0.2]))
    # alpha 10: (10 (0.8 + 0.2) + 0.8) / 21, (10 (0.8 + 0.2) + 0.2) / 21
    default = [weight[0].item() for weight in joint_weights(a, b)]
    assert default == pytest.approx([10.8 / 21, 10.2 / 21], rel=1e-6)


@settings(max_examples=40)
@given(
    num_rows=st.integers(1, 20),
    dims=st.integers(1, 4),
    alpha=st.sampled_from([0.0, 0.1, 10.0, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_residual_energy_never_grows(num_rows, dims, alpha, seed):
    """Few dimensions, many picks: the residuals are used up and the rest is rounding."""
    student, teacher = instances(num_rows, dims, dims + 1, seed)
    energies = select_prototypes(student, teacher, num_prototypes=20, alpha=alpha).energies
    assert energies[0].item() == pytest.approx(2 * num_rows, rel=1e-12)
    assert (energies.diff() <= 1e-13 * num_rows).all()
    assert energies.min() >= -1e-12 * num_rows


def test_clusters_get_a_prototype_each():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(6, dtype=torch.float64)[:4]
    label = torch.arange(60) % 4
    noise = 0.05 * torch.randn(2, 60, 6, generator=generator, dtype=torch.float64)
    student, teacher = centres[label] + noise[0], centres.flip(1)[label] + noise[1]
    picks = select_prototypes(student, teacher, num_prototypes=4).indices
    assert sorted(label[picks].tolist()) == [0, 1, 2, 3]


# Each pick at most once


def test_a_pick_and_its_copy_are_never_picked_again():
    """Three instances that look alike to the student, of which the teacher's pick explains one.

    The weight of a pick is shared, so most of what a = 1, b = 0 leaves along v stays. The
    candidates are the first instance, a copy of it, and a feature that no instance has.
    """
    e = torch.eye(3, dtype=torch.float64)
    student, teacher = e[[0, 0, 0]], e[[0, 1, 1]]
    candidates = e[[0, 0, 2]]

    # Without the rule the definition picks the first again and again, with half of it the copy.
    everything = torch.cat([candidates, student]), torch.cat([candidates, teacher])
    for once, expected in ((False, [0, 0, 0]), (True, [0, 1, 2])):
        picks = definition_on(*everything, num_candidates=3, once=once)
        assert picks == expected

    moments = joint_moments(student, teacher)
    assert match_prototypes(candidates, candidates, moments).indices.tolist() == [0, 2]


def definition_on(student, teacher, num_candidates, once):
    """Picks of the definition where the candidates, the first rows, are no instances."""
    f_s, f_t = student[:num_candidates], teacher[:num_candidates]
    r_s, r_t = student[num_candidates:], teacher[num_candidates:]
    picks = []
    for _ in range(num_candidates):
        errors = []
        for k in range(num_candidates):
            w_s, w_t = joint_weights(r_s @ f_s[k], r_t @ f_t[k])
            error = (r_s - torch.outer(w_s, f_s[k])).square().sum()
            error += (r_t - torch.outer(w_t, f_t[k])).square().sum()
            error += 10 * (w_s - w_t).square().sum()
            errors.append(math.inf if once and k in picks else error.item())
        k = min(range(num_candidates), key=errors.__getitem__)
        w_s, w_t = joint_weights(r_s @ f_s[k], r_t @ f_t[k])
        r_s, r_t = r_s - torch.outer(w_s, f_s[k]), r_t - torch.outer(w_t, f_t[k])
        picks.append(k)
    return picks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_copies_of_another_length_or_precision_are_copies(dtype):
    student, teacher = instances(5, 64, 48, dtype=dtype)
    scales = torch.tensor([1.0, 3.7, 0.13], dtype=torch.float64)
    copies = [
        torch.cat([(rows.double() * scale).to(dtype) for scale in scales])
        for rows in (student, teacher)
    ]
    found = select_prototypes(*copies, num_prototypes=15, duplicate_tolerance=1e-4)
    assert sorted((found.indices % 5).tolist()) == [0, 1, 2, 3, 4]
    if dtype in (torch.float64, torch.float32, torch.float16):
        assert len(select_prototypes(*copies, num_prototypes=15).indices) == 5


def test_a_copy_in_one_space_only_is_no_copy():
    student, teacher = instances(6, seed=3)
    student[1] = student[0]
    teacher[3] = teacher[2]
    found = select_prototypes(student, teacher)
    assert sorted(found.indices.tolist()) == [0, 1, 2, 3, 4, 5]


def test_tolerance_is_of_the_cosine():
    angle = 0.01  # 1 - cos = 5e-5
    turned = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    for tolerance, expected in ((4.9e-5, 2), (5.1e-5, 1), (0.0, 2)):
        found = select_prototypes(turned, turned, duplicate_tolerance=tolerance)
        assert len(found.indices) == expected


@pytest.mark.parametrize("seed", range(5))
def test_zero_tolerance_still_picks_each_candidate_once(seed):
    """The length of a unit row is 1 but for rounding, so its own cosine may be below 1."""
    student, teacher = instances(30, seed=seed)
    found = select_prototypes(student, teacher, num_prototypes=60, duplicate_tolerance=0.0)
    assert sorted(found.indices.tolist()) == list(range(30))


# Few, none, nothing


def test_fewer_candidates_than_prototypes_gives_all_of_them():
    student, teacher = instances(30)
    mask = torch.zeros(30, dtype=torch.bool)
    mask[[4, 11, 27]] = True
    found = select_prototypes(student, teacher, mask)
    assert sorted(found.indices.tolist()) == [4, 11, 27]
    assert found.energies.shape == (4,)


def test_no_candidate_and_no_instance():
    student, teacher = instances(8)
    found = select_prototypes(student, teacher, torch.zeros(8, dtype=torch.bool))
    assert found.indices.tolist() == [] and found.indices.dtype == torch.int64
    assert found.energies.tolist() == pytest.approx([16.0])
    empty = select_prototypes(student[:0], teacher[:0])
    assert empty.indices.tolist() == [] and empty.energies.tolist() == [0.0]
    weights = pursuit_weights(student, teacher, student[:0], teacher[:0])
    assert weights[0].shape == weights[1].shape == (8, 0)


def test_no_prototype_wanted():
    student, teacher = instances(8)
    assert select_prototypes(student, teacher, num_prototypes=0).indices.tolist() == []


def test_one_instance():
    student, teacher = instances(1)
    found = select_prototypes(student, teacher)
    assert found.indices.tolist() == [0]
    # a = b = 1: both weights are 1 and nothing is left.
    assert found.energies.tolist() == pytest.approx([2.0, 0.0], abs=1e-12)


def test_features_of_zeros_are_never_picked_and_teach_nothing():
    student, teacher = instances(6)
    student[2], teacher[4] = 0, 0
    found = select_prototypes(student, teacher)
    assert sorted(found.indices.tolist()) == [0, 1, 3, 5]
    student[4] = 0  # now row 4 is zero in both spaces
    moments = joint_moments(student, teacher)
    others = [0, 1, 2, 3, 5]
    # With another number of rows the product may sum in another order.
    alone = joint_moments(student[others], teacher[others])
    torch.testing.assert_close(moments, alone, rtol=0, atol=1e-14)


def test_of_equal_gains_the_first_candidate_wins():
    e = torch.eye(4, dtype=torch.float64)
    assert select_prototypes(e, e).indices.tolist() == [0, 1, 2, 3]
    assert select_prototypes(e, e, torch.tensor([2, 0, 3])).indices.tolist() == [2, 0, 3]


# Blocks, parts, precision


@pytest.mark.parametrize("block_size", [1, 7, 50, 1000])
def test_blocks_change_nothing(block_size):
    student, teacher = instances(50, 16, 12)
    moments = joint_moments(student, teacher)
    blocked = joint_moments(student, teacher, block_size=block_size)
    torch.testing.assert_close(blocked, moments, rtol=0, atol=1e-13)
    found = match_prototypes(student, teacher, blocked)
    assert torch.equal(found.indices, match_prototypes(student, teacher, moments).indices)


def test_moments_of_parts_add_up():
    """As over ranks: candidates gathered, moments summed, one rank without an instance."""
    student, teacher = instances(40, 16, 12)
    parts = [slice(0, 25), slice(25, 25), slice(25, 40)]
    moments = sum(joint_moments(student[part], teacher[part]) for part in parts)
    joint = torch.cat([student, teacher], dim=1)
    torch.testing.assert_close(moments, joint.t() @ joint, rtol=0, atol=1e-13)
    found = match_prototypes(student, teacher, moments)
    assert torch.equal(found.indices, select_prototypes(student, teacher).indices)


def test_arguments_are_left_as_they_are():
    student, teacher = instances(20)
    moments = joint_moments(student, teacher)
    before = [tensor.clone() for tensor in (student, teacher, moments)]
    match_prototypes(student, teacher, moments)
    pursuit_weights(student, teacher, student[:2], teacher[:2])
    for tensor, copy in zip((student, teacher, moments), before):
        assert torch.equal(tensor, copy)


def test_lengths_do_not_matter():
    student, teacher = instances(30, seed=4)
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(30, 2, generator=generator, dtype=torch.float64) * 100 + 0.01
    found = select_prototypes(student * scales[:, :1], teacher * scales[:, 1:])
    expected = select_prototypes(student, teacher)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.energies, expected.energies)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_is_computed_in_float64(dtype):
    student, teacher = instances(30, 16, 12, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = select_prototypes(student, teacher)
    expected = select_prototypes(student.double(), teacher.double())
    assert found.energies.dtype == torch.float64
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.energies, expected.energies)


def test_no_graph():
    student, teacher = instances(10)
    found = select_prototypes(student.requires_grad_(), teacher)
    assert not found.energies.requires_grad


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the direct definition."""
    student, teacher = instances(40, 12, 10, seed=9)
    found = select_prototypes(student, teacher, num_prototypes=5)
    assert found.indices.tolist() == GOLDEN_PICKS
    assert found.energies.tolist() == pytest.approx(GOLDEN_ENERGIES, rel=1e-9)


def test_wrong_arguments_are_refused():
    student, teacher = instances(6)
    moments = joint_moments(student, teacher)
    for alpha in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="alpha"):
            match_prototypes(student, teacher, moments, alpha=alpha)
        with pytest.raises(ValueError, match="alpha"):
            joint_weights(student, student, alpha)
    with pytest.raises(ValueError, match="num_prototypes.* -1 "):
        match_prototypes(student, teacher, moments, num_prototypes=-1)
    with pytest.raises(ValueError, match=r"moments.* \(12, 12\), got \(7, 7\)"):
        match_prototypes(student, teacher, moments[:7, :7])
    with pytest.raises(ValueError, match=r"student \(6, 7\), teacher \(5"):
        joint_moments(student, teacher[:5])
    with pytest.raises(ValueError, match=r"student \(5, 7\), teacher \(6"):
        match_prototypes(student[:5], teacher, moments)
    for broken in (float("nan"), float("inf")):
        wrong = teacher.clone()
        wrong[3, 2] = broken
        with pytest.raises(ValueError, match="features.* NaN"):
            joint_moments(student, wrong)
        with pytest.raises(ValueError, match="features.* NaN"):
            match_prototypes(student, wrong, moments)
        with pytest.raises(ValueError, match="features.* NaN"):
            pursuit_weights(student, wrong, student[:1], teacher[:1])
