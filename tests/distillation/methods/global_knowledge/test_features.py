"""What student and teacher see in candidate boxes: by hand, and how often."""

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from tiny_training_set import HEIGHT, WIDTH, object_records
from torch import nn

from kd_search.distillation import FrozenTeacher, TeacherOutputAligner
from kd_search.distillation.methods.global_knowledge import PrototypeBank
from kd_search.distillation.methods.global_knowledge.candidates import choose_images
from kd_search.distillation.methods.global_knowledge.features import (
    CandidateFeatures,
    HalfRows,
    gather_candidates,
    join,
)
from kd_search.outputs import ModelOutputs, ModelSpec, Part

NAMES, STRIDES, OURS, THEIRS = ["p2", "p3"], [4, 8], 5, 6
#: Pictures are shown half as large.
SCALE = 0.5


class Network(nn.Module):
    """Two maps of random patches of the picture; counts what it is shown."""

    def __init__(self, channels, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.levels = nn.ModuleDict(
            {name: nn.Conv2d(3, channels, s, stride=s) for name, s in zip(NAMES, STRIDES)}
        )
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def spec(self):
        return ModelSpec({}, num_classes=4)

    def forward_teacher(self, batched_inputs, parts):
        assert parts == {Part.FEATURES} and not torch.is_grad_enabled()
        image = batched_inputs[0]["image"][None].float()
        self.calls.append(image.sum().item())
        return ModelOutputs(
            features={name: self.dropout(conv(image)) for name, conv in self.levels.items()}
        )


def bank_of(**options):
    dims = [OURS] * 2, [THEIRS] * 2
    return PrototypeBank(NAMES, STRIDES, *dims, num_classes=4, per_class=3, **options)


def batches(positions):
    size = (3, int(HEIGHT * SCALE), int(WIDTH * SCALE))
    for position in positions:
        generator = torch.Generator().manual_seed(position)
        image = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        yield [{"image": image, "width": WIDTH, "height": HEIGHT, "training_position": position}]


@pytest.fixture
def images(tmp_path):
    return choose_images(object_records(tmp_path), images_per_class=9, min_size=30.0, seed=0)


@pytest.fixture
def networks():
    return Network(OURS).eval(), FrozenTeacher(Network(THEIRS, seed=1), frozenset({Part.FEATURES}))


def mean_of_cells(model, position, box, level, samples):
    """Bilinear samples at the centres of a samples x samples grid, one after the other, float64."""
    (batch,) = batches([position])
    with torch.no_grad():
        maps = model.forward_teacher(batch, frozenset({Part.FEATURES})).features
    cells = maps[NAMES[level]][0].double()
    corners = [c * SCALE / STRIDES[level] - 0.5 for c in box]
    total = 0
    for i in range(samples):
        for j in range(samples):
            x = corners[0] + (j + 0.5) * (corners[2] - corners[0]) / samples
            y = corners[1] + (i + 0.5) * (corners[3] - corners[1]) / samples
            x, y = max(x, 0.0), max(y, 0.0)
            for row in range(cells.shape[1]):
                for column in range(cells.shape[2]):
                    weight = max(0, 1 - abs(row - min(y, cells.shape[1] - 1)))
                    weight *= max(0, 1 - abs(column - min(x, cells.shape[2] - 1)))
                    if weight:
                        total = total + weight * cells[:, row, column]
    return total / samples**2


def test_features_are_means_over_the_boxes_of_the_resized_picture_in_both_networks(
    images, networks
):
    student, teacher = networks
    features = CandidateFeatures(student, teacher, bank_of(samples=3), images)
    own = features.visit(batches(images))
    assert own.images.tolist() == [0, 0, 1, 3, 3, 3, 4, 5, 5, 5]
    assert own.found.classes.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    for row in (0, 4, 9):
        for level in range(2):
            where = (int(own.images[row]), own.found.boxes[row].tolist(), level, 3)
            for model, rows in (
                (student, own.student[level]),
                (teacher.model, own.teacher[level].unpack()),
            ):
                expected = mean_of_cells(model, *where)
                # Half a unit of the eleventh bit of the row's largest number.
                half = 0 if model is student else 2**-11 * expected.abs().max()
                distance = (rows[row].double() - expected).abs().max()
                assert distance <= half + 1e-5 * expected.abs().max()


def test_the_teacher_looks_once_and_the_student_every_time(images, networks):
    student, teacher = networks
    features = CandidateFeatures(student, teacher, bank_of(), images)
    steps = []
    first = features.visit(batches(images), steps.append)
    assert steps == [1] * 5 and len(student.calls) == len(teacher.model.calls) == 5
    again = features.visit(batches(images))
    assert len(teacher.model.calls) == 5 and student.calls == 2 * student.calls[:5]
    assert all(torch.equal(x, y) for x, y in zip(first.student, again.student))
    with torch.no_grad():
        student.levels["p3"].weight.mul_(-1)
    changed = features.visit(batches(images))
    assert torch.equal(changed.student[0], first.student[0])
    assert not torch.equal(changed.student[1], first.student[1])
    assert all(torch.equal(x.rows, y.rows) for x, y in zip(first.teacher, changed.teacher))
    assert len(teacher.model.calls) == 5


def test_an_image_without_candidates_runs_no_network(images, networks):
    student, teacher = networks
    # Its size turns out to be another than a dict without any said.
    images = {0: images[0]}
    batch = [{**next(batches([0]))[0], "width": 20, "height": 20}]
    own = CandidateFeatures(student, teacher, bank_of(), images).visit([batch, batch])
    assert len(own.images) == 0 and not student.calls and not teacher.model.calls


def test_an_image_that_cannot_be_read_later_or_before_is_left_out_of_one_pass(images, networks):
    features = CandidateFeatures(*networks, bank_of(), images)
    without_three = features.visit(batches([0, 1, 4, 5]))
    without_zero = features.visit(batches([1, 3, 4, 5]))
    assert 3 not in without_three.images and 3 in without_zero.images
    everything = features.visit(batches(images))
    there = everything.images != 0
    assert torch.equal(everything.where(there).student[0], without_zero.student[0])
    assert torch.equal(everything.where(there).teacher[1].rows, without_zero.teacher[1].rows)


def test_the_teacher_gets_its_own_order_of_channels(images, networks):
    student, teacher = networks
    specs = [
        ModelSpec({"p2": ShapeSpec(channels=1, stride=4)}, num_classes=4, image_format=order)
        for order in ("BGR", "RGB")
    ]
    flipped = FrozenTeacher(teacher.model, frozenset(), TeacherOutputAligner(*specs))
    plain = CandidateFeatures(student, teacher, bank_of(), images).visit(batches([0]))
    other = CandidateFeatures(student, flipped, bank_of(), images).visit(batches([0]))
    assert torch.equal(plain.student[0], other.student[0])
    assert not torch.equal(plain.teacher[0].rows, other.teacher[0].rows)


def test_parts_are_put_in_the_order_of_the_images(images, networks):
    features = CandidateFeatures(*networks, bank_of(), images)
    whole = features.visit(batches(images))
    parts = [features.visit(batches(p)) for p in ([3, 4], [], [5], [0, 1])]
    mixed = gather_candidates(join(parts))
    assert torch.equal(mixed.images, whole.images)
    for name, column in whole.found._asdict().items():
        assert torch.equal(getattr(mixed.found, name), column), name
    for level in range(2):
        assert torch.equal(mixed.student[level], whole.student[level])
        assert torch.equal(mixed.teacher[level].unpack(), whole.teacher[level].unpack())
    nothing = gather_candidates(features.visit([]))
    assert nothing.student[0].shape == (0, OURS) and nothing.teacher[1].unpack().shape == (0, 6)
    assert replace(nothing, images=whole.images).images is whole.images


def test_half_rows_hold_features_of_any_size_to_eleven_bits():
    torch.manual_seed(0)
    rows = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    packed = HalfRows.pack(rows)
    assert packed.rows.dtype == torch.float16
    error = (packed.unpack() - rows).abs().amax(dim=1) / rows.abs().amax(dim=1)
    assert error.max() <= 2**-11 and error.max() > 2**-14
    cosine = torch.nn.functional.cosine_similarity(packed.unpack().double(), rows.double())
    assert (1 - cosine).max() < 1e-6
    odd = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [float("inf"), 1.0]])
    found = HalfRows.pack(odd).unpack()
    assert found[0].tolist() == [0, 0] and not found[1:].isfinite().all(dim=1).any()
