"""Agreement weights and the losses that they weigh, against loops over regions and cells."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import (
    agreement_weights,
    attenuation,
    global_knowledge_loss,
    paint_boxes,
    weighted_binary_soft_labels,
    weighted_feature_loss,
    weighted_soft_labels,
)
from tests.losses.helpers import random, slow_cosine, slow_sigmoid, slow_softmax

GOLDEN_WEIGHTS = 3.8773064801157613
GOLDEN_GLOBAL = 0.6631075801041826
GOLDEN_GLOBAL_GRADIENT_NORM = 0.12328046157259565
GOLDEN_FEATURE = (0.7360615578984758, 0.6993678131510609)
GOLDEN_SOFT = 0.3745350909446077
GOLDEN_SOFT_GRADIENT_NORM = 0.1851719161652367
GOLDEN_BINARY = 0.5848877656432275
GOLDEN_BINARY_GRADIENT_NORM = 0.22583549001854145


def random_classes(count, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randint(num_classes, (count,), generator=generator)


def knowledge(num_regions=6, num_prototypes=5, num_classes=3, seed=0, dtype=torch.float64):
    """Arguments of agreement_weights: spaces of 4 and 3 dimensions, not centred on zero."""
    return (
        random(num_regions, 4, seed=seed, dtype=dtype) + 0.5,
        random(num_regions, 3, seed=seed + 1, dtype=dtype) + 0.5,
        random_classes(num_regions, num_classes, seed),
        random(num_prototypes, 4, seed=seed + 2, dtype=dtype) + 0.5,
        random(num_prototypes, 3, seed=seed + 3, dtype=dtype) + 0.5,
        random_classes(num_prototypes, num_classes, seed + 1),
    )


def slow_weights(student, teacher, classes, prototypes_s, prototypes_t, prototype_classes, unknown):
    weights = []
    for f_s, f_t, c in zip(student.tolist(), teacher.tolist(), classes.tolist()):
        own = [p for p in range(len(prototypes_s)) if prototype_classes[p] == c]
        if not own:
            weights.append(unknown)
            continue
        q_s = max(slow_cosine(f_s, prototypes_s[p].tolist()) for p in own)
        q_t = max(slow_cosine(f_t, prototypes_t[p].tolist()) for p in own)
        weights.append(max(0.0, 1 - abs(q_s - q_t)))
    return weights


def slow_smooth_l1(x, y):
    d = abs(x - y)
    return d * d / 2 if d < 1 else d - 0.5


def slow_global(student, teacher, prototypes_s, prototypes_t, weights):
    losses = []
    for f_s, f_t, r in zip(student.tolist(), teacher.tolist(), weights.tolist()):
        pairs = list(zip(prototypes_s.tolist(), prototypes_t.tolist()))
        total = sum(
            slow_smooth_l1(r * slow_cosine(f_s, p_s), r * slow_cosine(f_t, p_t))
            for p_s, p_t in pairs
        )
        losses.append(total / len(pairs) if pairs else 0.0)
    return losses


# Agreement weights


@settings(max_examples=60)
@given(
    num_regions=st.integers(0, 6),
    num_prototypes=st.integers(0, 6),
    num_classes=st.integers(1, 4),
    unknown=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_weights_equal_slow_reference(num_regions, num_prototypes, num_classes, unknown, seed):
    arguments = knowledge(num_regions, num_prototypes, num_classes, seed)
    weights = agreement_weights(*arguments, unknown=unknown)
    assert weights.shape == (num_regions,)
    assert weights.tolist() == pytest.approx(slow_weights(*arguments, unknown), abs=1e-12)


def test_student_equal_to_its_teacher_weighs_1():
    student, _, classes, prototypes, _, prototype_classes = knowledge(20, 8)
    weights = agreement_weights(
        student, student, classes, prototypes, prototypes, prototype_classes
    )
    assert torch.equal(weights, torch.ones(20, dtype=torch.float64))


def test_a_noisy_box_weighs_less():
    """A region that the teacher takes for typical and the student for something else."""
    e = torch.eye(3)
    classes = torch.zeros(2, dtype=torch.int64)
    prototypes = e[:1]
    student = torch.stack([e[0], e[1]])
    teacher = torch.stack([e[0], e[0]])
    weights = agreement_weights(student, teacher, classes, prototypes, prototypes, classes[:1])
    assert weights.tolist() == [1.0, 0.0]
    # cos 60 degrees against 1
    student[1] = torch.tensor([0.5, math.sqrt(0.75), 0.0])
    weights = agreement_weights(student, teacher, classes, prototypes, prototypes, classes[:1])
    assert weights.tolist() == pytest.approx([1.0, 0.5])


def test_a_weight_is_never_negative():
    e = torch.eye(2)
    region_class = torch.zeros(1, dtype=torch.int64)
    weights = agreement_weights(-e[:1], e[:1], region_class, e[:1], e[:1], region_class)
    assert weights.tolist() == [0.0]


def test_prototypes_of_other_classes_do_not_count():
    student, teacher, classes, *prototypes = knowledge(10, 6, 1)
    expected = agreement_weights(student, teacher, classes, *prototypes)
    more = [torch.cat([own, own.new_ones(3, *own.shape[1:]) * 7]) for own in prototypes]
    # A product with another number of columns may sum in another order.
    weights = agreement_weights(student, teacher, classes, *more)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-14)


def test_weights_have_no_gradient_and_lengths_do_not_matter():
    student, teacher, *rest = knowledge()
    weights = agreement_weights(student.clone().requires_grad_(), teacher, *rest)
    assert not weights.requires_grad
    scaled = agreement_weights(student * 40, teacher * 0.01, *rest)
    torch.testing.assert_close(scaled, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_lower_precision_are_computed_in_float32(dtype):
    arguments = knowledge(12, 6, dtype=dtype)
    weights = agreement_weights(*arguments)
    assert weights.dtype == torch.float32
    double = [tensor.double() if tensor.is_floating_point() else tensor for tensor in arguments]
    torch.testing.assert_close(weights.double(), agreement_weights(*double), atol=1e-6, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(agreement_weights(*arguments), weights)


# Global knowledge


@settings(max_examples=60)
@given(num_regions=st.integers(0, 6), num_prototypes=st.integers(0, 6), seed=st.integers(0, 2**16))
def test_global_loss_equals_slow_reference(num_regions, num_prototypes, seed):
    student, teacher, _, prototypes_s, prototypes_t, _ = knowledge(
        num_regions, num_prototypes, seed=seed
    )
    weights = random(num_regions, seed=seed + 5).sigmoid() * 1.5
    losses = global_knowledge_loss(student, teacher, prototypes_s, prototypes_t, weights)
    assert losses.shape == (num_regions,)
    slow = slow_global(student, teacher, prototypes_s, prototypes_t, weights)
    assert losses.tolist() == pytest.approx(slow, abs=1e-12)


def test_a_weight_of_zero_takes_a_region_out():
    student, teacher, _, prototypes_s, prototypes_t, _ = knowledge(3)
    student.requires_grad_()
    weights = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    losses = global_knowledge_loss(student, teacher, prototypes_s, prototypes_t, weights)
    losses.sum().backward()
    assert losses[1] == 0 and losses[0] > 0 and losses[2] > 0
    assert (student.grad.norm(dim=1) > 0).tolist() == [True, False, True]


def test_global_loss_gradcheck():
    student, teacher, _, prototypes_s, prototypes_t, _ = knowledge()
    weights = random(6, seed=7).sigmoid()
    assert torch.autograd.gradcheck(
        lambda s: global_knowledge_loss(s, teacher, prototypes_s, prototypes_t, weights),
        (student.requires_grad_(),),
    )


def test_only_the_student_gets_a_gradient():
    student, teacher, _, prototypes_s, prototypes_t, _ = (
        tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in knowledge()
    )
    weights = random(6, seed=7).sigmoid().requires_grad_()
    losses = global_knowledge_loss(student, teacher, prototypes_s, prototypes_t, weights)
    losses.sum().backward()
    assert student.grad.abs().sum() > 0
    for tensor in (teacher, prototypes_s, prototypes_t, weights):
        assert tensor.grad is None


def test_a_region_of_zeros_gives_a_finite_gradient():
    student, teacher, _, prototypes_s, prototypes_t, _ = knowledge()
    student[2] = 0
    student.requires_grad_()
    losses = global_knowledge_loss(student, teacher, prototypes_s, prototypes_t, torch.ones(6))
    losses.sum().backward()
    assert losses.isfinite().all() and student.grad.isfinite().all()
    assert student.grad.abs().max() < 100


@pytest.mark.parametrize("num_regions, num_prototypes", [(0, 5), (6, 0), (0, 0)])
def test_nothing_to_compare_keeps_the_graph_of_the_layers_before(num_regions, num_prototypes):
    layer = torch.nn.Linear(2, 4)
    _, teacher, _, prototypes_s, prototypes_t, _ = knowledge(
        num_regions, num_prototypes, dtype=torch.float32
    )
    student = layer(torch.ones(num_regions, 2))
    losses = global_knowledge_loss(
        student, teacher, prototypes_s, prototypes_t, torch.ones(num_regions)
    )
    assert losses.shape == (num_regions,) and losses.sum().item() == 0.0
    losses.sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


# Weighted feature loss


def slow_feature_loss(student, teacher, weights, covered):
    fore = back = weight_sum = back_count = 0.0
    num_images, num_channels, height, width = student.shape
    for n in range(num_images):
        for c in range(num_channels):
            for i in range(height):
                for j in range(width):
                    square = (student[n, c, i, j] - teacher[n, c, i, j]).item() ** 2
                    fore += weights[n, i, j].item() * square
                    weight_sum += weights[n, i, j].item()
                    if not covered[n, i, j]:
                        back += square
                        back_count += 1
    return fore / max(1.0, 2 * weight_sum), back / max(1.0, 2 * back_count)


def maps_and_masks(num_images=2, num_channels=3, height=3, width=4, num_boxes=3, seed=0):
    shape = (num_images, num_channels, height, width)
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64) * 20
    boxes = torch.cat([corner, corner + 10], dim=1)
    image_index = random_classes(num_boxes, max(num_images, 1), seed)
    weights, covered = paint_boxes(
        boxes, image_index, random(num_boxes, seed=seed).sigmoid(), (num_images, height, width), 8
    )
    return random(*shape, seed=seed), random(*shape, seed=seed + 1), weights, covered


@settings(max_examples=40)
@given(num_boxes=st.integers(0, 4), seed=st.integers(0, 2**16))
def test_feature_loss_equals_slow_reference(num_boxes, seed):
    arguments = maps_and_masks(num_boxes=num_boxes, seed=seed)
    losses = weighted_feature_loss(*arguments)
    slow = slow_feature_loss(*arguments)
    assert [loss.item() for loss in losses] == pytest.approx(slow, rel=1e-12)


def test_feature_loss_of_a_constant_difference():
    _, teacher, weights, covered = maps_and_masks()
    fore, back = weighted_feature_loss(teacher + 3, teacher, weights, covered)
    assert fore.item() == pytest.approx(4.5) and back.item() == pytest.approx(4.5)


def test_weights_move_attention_between_boxes_only():
    student, teacher, weights, covered = maps_and_masks(seed=4)
    fore, back = weighted_feature_loss(student, teacher, weights, covered)
    again, same = weighted_feature_loss(student, teacher, 0.6 * weights, covered)
    assert again.item() == pytest.approx(fore.item()) and same == back
    # A box of weight 0 among others is left out, and is no background either.
    noisy = weights.clone()
    noisy[0] = 0
    student[0] += 100 * covered[0]
    fore, back = weighted_feature_loss(student, teacher, noisy, covered)
    slow = slow_feature_loss(student[1:], teacher[1:], weights[1:], covered[1:])
    assert weights[0].any() and fore.item() == pytest.approx(slow[0])
    assert back == same


def test_no_box_no_background_no_image():
    student, teacher, weights, covered = maps_and_masks(num_boxes=0)
    student.requires_grad_()
    fore, back = weighted_feature_loss(student, teacher, weights, covered)
    assert fore.item() == 0.0 and back.item() == pytest.approx(
        (student - teacher).square().mean().item() / 2
    )
    (fore + back).backward()
    assert student.grad.isfinite().all()

    everywhere = torch.ones_like(weights)
    fore, back = weighted_feature_loss(student, teacher, everywhere, ~covered)
    assert back.item() == 0.0 and fore.item() == pytest.approx(
        (student - teacher).square().mean().item() / 2
    )

    layer = torch.nn.Conv2d(2, 3, 1)
    nothing = maps_and_masks(num_images=0, num_boxes=0)
    fore, back = weighted_feature_loss(layer(torch.zeros(0, 2, 3, 4)), *nothing[1:])
    assert fore.item() == back.item() == 0.0
    (fore + back).backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


def test_without_agreement_the_foreground_fades():
    student, teacher, weights, covered = maps_and_masks()
    fore, _ = weighted_feature_loss(student, teacher, 0 * weights, covered)
    assert fore.item() == 0.0
    tiny, _ = weighted_feature_loss(student, teacher, 1e-9 * weights, covered)
    assert 0 < tiny.item() < 1e-6


def test_feature_loss_gradcheck():
    student, teacher, weights, covered = maps_and_masks()
    assert torch.autograd.gradcheck(
        lambda s: weighted_feature_loss(s, teacher, weights, covered), (student.requires_grad_(),)
    )


# Weighted soft labels


def slow_soft_labels(student, teacher, weights, temperature):
    losses = []
    for s, t, r in zip(student.tolist(), teacher.tolist(), weights.tolist()):
        p_s, p_t = slow_softmax(s, temperature), slow_softmax(t, temperature)
        divergence = sum(q * (math.log(q) - math.log(p)) for p, q in zip(p_s, p_t) if q > 0)
        losses.append(r * temperature**2 * divergence / len(s))
    return losses


@settings(max_examples=60)
@given(
    num_regions=st.integers(0, 5),
    num_classes=st.integers(1, 6),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 5.0]),
    seed=st.integers(0, 2**16),
)
def test_soft_labels_equal_slow_reference(num_regions, num_classes, temperature, seed):
    student = 2 * random(num_regions, num_classes, seed=seed)
    teacher = 2 * random(num_regions, num_classes, seed=seed + 1)
    weights = random(num_regions, seed=seed + 2).sigmoid()
    losses = weighted_soft_labels(student, teacher, weights, temperature)
    assert losses.shape == (num_regions,)
    slow = slow_soft_labels(student, teacher, weights, temperature)
    assert losses.tolist() == pytest.approx(slow, abs=1e-12)


def test_soft_labels_default_temperature_is_2():
    student, teacher, weights = random(4, 3), random(4, 3, seed=1), torch.ones(4)
    losses = weighted_soft_labels(student, teacher, weights)
    assert losses.tolist() == pytest.approx(slow_soft_labels(student, teacher, weights, 2.0))


def test_soft_labels_are_zero_at_the_teacher():
    student = random(5, 4).requires_grad_()
    teacher = student.detach() + torch.arange(5.0)[:, None]  # the same probabilities
    losses = weighted_soft_labels(student, teacher, torch.ones(5))
    losses.sum().backward()
    torch.testing.assert_close(losses, torch.zeros_like(losses), rtol=0, atol=1e-15)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-15)


def test_soft_labels_of_a_class_that_the_teacher_does_not_have():
    student, teacher = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    teacher[:, 2] = -math.inf
    losses = weighted_soft_labels(student, teacher, torch.ones(3))
    slow = slow_soft_labels(student, teacher, torch.ones(3), 2.0)
    assert losses.tolist() == pytest.approx(slow, abs=1e-12)
    losses.sum().backward()
    assert student.grad.isfinite().all() and (student.grad[:, 2] > 0).all()


def test_soft_labels_gradcheck():
    student, teacher, weights = random(4, 3), random(4, 3, seed=1), random(4, seed=2).sigmoid()
    assert torch.autograd.gradcheck(
        lambda s: weighted_soft_labels(s, teacher, weights), (student.requires_grad_(),)
    )


# Weighted soft labels of one logit a class


def slow_binary_soft_labels(student, teacher, weights, temperature):
    losses = []
    for s, t, r in zip(student.tolist(), teacher.tolist(), weights.tolist()):
        total = 0.0
        for x, y in zip(s, t):
            q, p = slow_sigmoid(x / temperature), slow_sigmoid(y / temperature)
            total += p * math.log(p / q) if p > 0 else 0.0
            total += (1 - p) * math.log((1 - p) / (1 - q))
        losses.append(r * temperature**2 * total / len(s))
    return losses


@settings(max_examples=60)
@given(
    num_regions=st.integers(0, 5),
    num_classes=st.integers(1, 6),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 5.0]),
    seed=st.integers(0, 2**16),
)
def test_binary_labels_equal_slow_reference(num_regions, num_classes, temperature, seed):
    student = 2 * random(num_regions, num_classes, seed=seed)
    teacher = 2 * random(num_regions, num_classes, seed=seed + 1)
    weights = random(num_regions, seed=seed + 2).sigmoid()
    losses = weighted_binary_soft_labels(student, teacher, weights, temperature)
    assert losses.shape == (num_regions,)
    slow = slow_binary_soft_labels(student, teacher, weights, temperature)
    assert losses.tolist() == pytest.approx(slow, abs=1e-10)


def test_binary_labels_are_those_of_a_softmax_over_the_two_outcomes():
    """A logit x against none is a softmax of (x, 0); its mean over two is half of the KL."""
    student, teacher, weights = random(6, 1), random(6, 1, seed=1), random(6, seed=2).sigmoid()
    pair = [torch.cat([x, torch.zeros_like(x)], dim=1) for x in (student, teacher)]
    torch.testing.assert_close(
        weighted_binary_soft_labels(student, teacher, weights),
        2 * weighted_soft_labels(*pair, weights),
    )


def test_binary_labels_of_a_class_that_the_teacher_does_not_have():
    student, teacher = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    teacher[:, 2] = -math.inf
    losses = weighted_binary_soft_labels(student, teacher, torch.ones(3))
    very = teacher.masked_fill(teacher == -math.inf, -1400.0)
    slow = slow_binary_soft_labels(student.detach(), very, torch.ones(3), 2.0)
    assert losses.tolist() == pytest.approx(slow, abs=1e-12)
    losses.sum().backward()
    assert student.grad.isfinite().all() and (student.grad[:, 2] > 0).all()


def test_binary_labels_of_huge_logits_are_finite():
    logits = torch.tensor([[-3e4, -90.0, 0.0, 90.0, 3e4]])
    student = logits.flip(1).clone().requires_grad_()
    losses = weighted_binary_soft_labels(student, logits, torch.ones(1), 1.0)
    losses.sum().backward()
    assert losses.item() == pytest.approx((3e4 + 90) * 2 / 5, rel=1e-6)
    assert student.grad.isfinite().all()


def test_binary_labels_gradcheck():
    student, teacher, weights = random(4, 3), random(4, 3, seed=1), random(4, seed=2).sigmoid()
    teacher[0, 1] = -math.inf
    assert torch.autograd.gradcheck(
        lambda s: weighted_binary_soft_labels(s, teacher, weights), (student.requires_grad_(),)
    )


# Attenuation, numbers, errors


def test_attenuation_falls_from_1_to_0():
    assert [attenuation(epoch, 24) for epoch in (0, 6, 12, 24)] == [1.0, 0.75, 0.5, 0.0]
    assert attenuation(0.5, 2) == 0.75
    assert attenuation(25, 24) == 0.0  # a resumed run that goes on
    for epoch, max_epochs in ((-1, 24), (0, 0), (1, -3)):
        with pytest.raises(ValueError, match=f"got {epoch} and {max_epochs}"):
            attenuation(epoch, max_epochs)


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow references."""
    arguments = knowledge(10, 7, seed=3)
    student, teacher, _, prototypes_s, prototypes_t, _ = arguments
    weights = agreement_weights(*arguments)
    assert weights.sum().item() == pytest.approx(GOLDEN_WEIGHTS, rel=1e-9)

    student.requires_grad_()
    total = global_knowledge_loss(student, teacher, prototypes_s, prototypes_t, weights).sum()
    total.backward()
    assert total.item() == pytest.approx(GOLDEN_GLOBAL, rel=1e-9)
    assert student.grad.norm().item() == pytest.approx(GOLDEN_GLOBAL_GRADIENT_NORM, rel=1e-9)

    losses = weighted_feature_loss(*maps_and_masks(seed=3))
    assert [loss.item() for loss in losses] == pytest.approx(GOLDEN_FEATURE, rel=1e-9)

    logits = random(10, 4, seed=3).requires_grad_()
    total = weighted_soft_labels(logits, random(10, 4, seed=4), weights).sum()
    total.backward()
    assert total.item() == pytest.approx(GOLDEN_SOFT, rel=1e-9)
    assert logits.grad.norm().item() == pytest.approx(GOLDEN_SOFT_GRADIENT_NORM, rel=1e-9)

    logits.grad = None
    total = weighted_binary_soft_labels(logits, random(10, 4, seed=4), weights).sum()
    total.backward()
    assert total.item() == pytest.approx(GOLDEN_BINARY, rel=1e-9)
    assert logits.grad.norm().item() == pytest.approx(GOLDEN_BINARY_GRADIENT_NORM, rel=1e-9)


def test_wrong_arguments_are_refused():
    student, teacher, classes, prototypes_s, prototypes_t, prototype_classes = knowledge()
    with pytest.raises(ValueError, match=r"student \(6, 4\), teacher \(5, 3\), classes \(6, 1\)"):
        agreement_weights(
            student, teacher[:5], classes, prototypes_s, prototypes_t, prototype_classes
        )
    with pytest.raises(ValueError, match="regions_and_prototypes"):
        agreement_weights(
            student, teacher, classes, prototypes_s, prototypes_t, prototype_classes[:2]
        )
    with pytest.raises(ValueError, match=r"prototypes_student \(5, 4\), prototypes_teacher \(4"):
        global_knowledge_loss(student, teacher, prototypes_s, prototypes_t[:4], torch.ones(6))
    with pytest.raises(ValueError, match=r"weights \(5, 1\)"):
        global_knowledge_loss(student, teacher, prototypes_s, prototypes_t, torch.ones(5))

    maps, other_maps, weights, covered = maps_and_masks()
    with pytest.raises(ValueError, match="student"):
        weighted_feature_loss(maps, other_maps[:, :2], weights, covered)
    with pytest.raises(ValueError, match=r"cells \(2, 3, 4\), weights \(1, 3, 4\)"):
        weighted_feature_loss(maps, other_maps, weights[:1], covered)

    logits = random(4, 3)
    for soft_labels in (weighted_soft_labels, weighted_binary_soft_labels):
        with pytest.raises(ValueError, match="temperature.* 0"):
            soft_labels(logits, logits, torch.ones(4), 0)
        with pytest.raises(ValueError, match=r"student_logits \(4, 3\), weights \(1, 1\)"):
            soft_labels(logits, logits, torch.ones(1))
        with pytest.raises(ValueError, match="student_logits"):
            soft_labels(logits, logits[:, :2], torch.ones(4))
