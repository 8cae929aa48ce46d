"""The bank of prototypes: what it keeps, how a batch compares with it, and its way to disk."""

import math
from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from tiny import tiny_cfg, tiny_detector_cfg, training_input
from tiny_distiller import distiller_of, losses_of, save_teacher

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.config import get_cfg
from kd_search.distillation.methods.global_knowledge import PrototypeBank
from kd_search.distillation.methods.global_knowledge.match import (
    assign_levels,
    pool_regions,
    shared_levels,
)
from kd_search.outputs import AnchorOutputs, AnchorTargets, ModelOutputs, ModelSpec

NAMES, STRIDES = ["p4", "p5"], [16, 32]


def bank(**changes):
    arguments = {"num_classes": 3, "per_class": 4, **changes}
    return PrototypeBank(NAMES, STRIDES, [3, 5], [4, 2], **arguments)


def fill(bank, counts, seed=0):
    """Put random prototypes, ``counts[level][group]`` of them."""
    generator = torch.Generator().manual_seed(seed)
    for level, groups in enumerate(counts):
        for group, count in enumerate(groups):
            bank.put(
                level,
                group,
                torch.randn(count, (3, 5)[level], generator=generator) + 0.3,
                torch.randn(count, (4, 2)[level], generator=generator) + 0.3,
                torch.arange(count) + 10 * group,
                torch.rand(count, 4, generator=generator),
            )
    return bank


def maps(channels, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, d, 96 // s, 128 // s, generator=generator).to(dtype)
        for name, d, s in zip(NAMES, channels, STRIDES)
    }


def outputs(dtype=torch.float32, ids=None):
    """(student's, teacher's): five annotated boxes of both sizes in two images."""
    boxes = [[5, 5, 60, 70], [20, 0, 128, 96], [40, 30, 90, 90], [0, 0, 12, 9], [1, 2, 120, 95]]
    images = []
    for rows in (range(2), range(2, 5)):
        instances = Instances((96, 128))
        instances.gt_boxes = Boxes(torch.tensor([boxes[r] for r in rows], dtype=torch.float32))
        instances.gt_classes = torch.tensor([[0, 1, 2, 0, 1][r] for r in rows])
        if ids is not None:
            instances.gt_classes *= 0
            instances.gt_person_ids = torch.tensor([ids[r] for r in rows])
        images.append(instances)
    return (
        ModelOutputs(features=maps((3, 5), 1, dtype), annotated=images),
        ModelOutputs(features=maps((4, 2), 2, dtype)),
    )


def slow_cosine(x, y):
    product = sum(a * b for a, b in zip(x, y))
    return product / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def slow_weight(student, teacher, pairs):
    """r of one region from (student, teacher) prototypes of its group; 1 without any."""
    if not pairs:
        return 1.0
    best = [
        max(slow_cosine(side.double().tolist(), p[i].double().tolist()) for p in pairs)
        for i, side in enumerate((student, teacher))
    ]
    return max(0.0, 1 - abs(best[0] - best[1]))


def pairs_of(bank, level, group):
    students, teachers = getattr(bank, f"student_{level}"), getattr(bank, f"teacher_{level}")
    kept = bank.filled[level, group]
    return list(zip(students[group][kept], teachers[group][kept]))


def test_compare_against_a_loop():
    # Class 1 has no prototype at the finer level, class 2 fewer than PER_CLASS.
    full = fill(bank(), [[4, 0, 2], [3, 4, 1]])
    student, teacher = outputs()
    found = full.compare(student, teacher)
    boxes = torch.cat([x.gt_boxes.tensor for x in student.annotated])
    classes = [0, 1, 2, 0, 1]
    assert torch.equal(found.boxes, boxes) and found.classes.tolist() == classes
    assert found.image_index.tolist() == [0, 0, 1, 1, 1]
    assert found.levels.tolist() == [0, 0, 0, 0, 0]
    assert (found.names, found.strides) == (NAMES, STRIDES)
    for level in range(2):
        expected = []
        for side, known in ((found.student, student), (found.teacher, teacher)):
            pooled = pool_regions(
                [known.features[NAMES[level]]], [STRIDES[level]], boxes, found.image_index
            )[0]
            torch.testing.assert_close(side[level], pooled)
        for r, c in enumerate(classes):
            pairs = pairs_of(full, level, c)
            expected.append(slow_weight(found.student[level][r], found.teacher[level][r], pairs))
        assert found.weights[level].tolist() == pytest.approx(expected, abs=1e-6)
        prototypes = [pair for group in range(3) for pair in pairs_of(full, level, group)]
        assert torch.equal(found.prototypes_student[level], torch.stack([p[0] for p in prototypes]))
        assert torch.equal(found.prototypes_teacher[level], torch.stack([p[1] for p in prototypes]))
    assert found.weights[0][1] == 1 and found.weights[0][0] < 1


def test_people_compare_with_their_cluster_and_strangers_with_all():
    full = fill(bank(num_classes=1, clusters=3, num_identities=5), [[2, 3, 4], [4, 1, 2]])
    full.identity_groups.copy_(torch.tensor([2, 0, 1, 1, -1]))
    # Unlabelled, and an identity whose cluster is not known.
    ids = [0, -1, 3, 4, 1]
    found = full.compare(*outputs(ids=ids))
    groups = [2, -1, 1, -1, 0]
    assert full.groups_of(found.classes, torch.tensor(ids)).tolist() == groups
    assert full.groups_of(found.classes).tolist() == [-1] * 5
    for level in range(2):
        expected = []
        for r, group in enumerate(groups):
            chosen = range(3) if group == -1 else [group]
            pairs = [pair for g in chosen for pair in pairs_of(full, level, g)]
            expected.append(slow_weight(found.student[level][r], found.teacher[level][r], pairs))
        assert found.weights[level].tolist() == pytest.approx(expected, abs=1e-6)
        assert len(found.prototypes_student[level]) == 9 - 2 * level


def test_each_region_weighs_what_it_does_at_its_own_level():
    full = fill(bank(finest_scale=35.0), [[4, 4, 4], [4, 4, 4]])
    found = full.compare(*outputs())
    levels = assign_levels(found.boxes, 2, 35.0)
    assert levels.tolist() == [0, 1, 0, 0, 1]
    expected = [float(found.weights[level][r]) for r, level in enumerate(levels)]
    assert found.assigned_weights().tolist() == expected
    assert not found.weights[0].requires_grad


def mean_of_cells(grid, box, stride):
    """The mean feature of the cells of a box whose sides lie between cells."""
    x0, y0, x1, y1 = (int(side) // stride for side in box)
    columns = [grid[:, y, x].double() for y in range(y0, y1) for x in range(x0, x1)]
    return sum(columns) / len(columns)


def test_positive_anchors_weigh_r_of_their_own_boxes_and_classes():
    full = fill(bank(finest_scale=20.0, samples=0), [[4, 0, 2], [3, 4, 1]])
    full.weighs_anchors = True
    student, teacher = outputs()
    anchors = [[0, 0, 32, 32], [32, 16, 64, 48], [16, 48, 32, 64], [0, 32, 96, 96], [32, 0, 96, 64]]
    targets = AnchorTargets(
        labels=torch.tensor([[1, 0, 1, 1, -1], [0, 1, 0, 1, 1]], dtype=torch.int8),
        deltas=torch.zeros(6, 4),
        normalizer=6.0,
        classes=torch.tensor([[2, 3, 0, 0, -1], [3, 1, 3, 2, 1]]),
    )
    boxes = list(torch.tensor(anchors, dtype=torch.float32).split([3, 2]))
    student = replace(student, anchors=AnchorOutputs(boxes, targets=targets))
    for grid in student.features.values():
        grid.requires_grad_()
    found = full.compare(student, teacher)
    expected = []
    # (image, anchor, level): the first three of 16 and 32 pixels, the last two of 64 and 78.
    for image, anchor, level in ((0, 0, 0), (0, 2, 0), (0, 3, 1), (1, 1, 0), (1, 3, 1), (1, 4, 1)):
        features = (
            mean_of_cells(k.features[NAMES[level]][image].detach(), anchors[anchor], STRIDES[level])
            for k in (student, teacher)
        )
        group = int(targets.classes[image, anchor])
        expected.append(slow_weight(*features, pairs_of(full, level, group)))
    assert found.anchor_weights.tolist() == pytest.approx(expected, abs=1e-5)
    assert not found.anchor_weights.requires_grad and expected.count(1.0) == 1
    # Without weights all are 1, and without a term that reads them there are none.
    full.weighted = False
    assert torch.equal(full.compare(student, teacher).anchor_weights, torch.ones(6))
    full.weighs_anchors = False
    assert full.compare(student, teacher).anchor_weights is None


def test_an_empty_bank_weighs_everything_1():
    empty = bank()
    assert empty.is_empty and empty.in_use
    found = empty.compare(*outputs())
    assert all(torch.equal(weights, torch.ones(5)) for weights in found.weights)
    assert [len(p) for p in found.prototypes_student] == [0, 0]
    assert [p.shape for p in found.prototypes_teacher] == [(0, 4), (0, 2)]
    assert not fill(empty, [[0, 0, 0], [0, 1, 0]]).is_empty


def test_unweighted_regions_weigh_1_and_an_unused_bank_looks_at_no_feature():
    full = fill(bank(weighted=False), [[4, 4, 4], [4, 4, 4]])
    found = full.compare(*outputs())
    assert len(found.student) == 2 and torch.equal(found.assigned_weights(), torch.ones(5))
    full.in_use = False
    student, _ = outputs()
    found = full.compare(replace(student, features=None), ModelOutputs())
    assert found.student == [] and torch.equal(found.assigned_weights(), torch.ones(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_compares_as_its_values_in_float32(dtype):
    full = fill(bank(), [[4, 1, 2], [3, 4, 1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = full.compare(*outputs(dtype))
    expected = full.compare(
        *(
            replace(x, features={name: grid.float() for name, grid in x.features.items()})
            for x in outputs(dtype)
        )
    )
    for ours, theirs in zip(found.weights, expected.weights):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_a_batch_without_boxes_compares_too():
    student, teacher = outputs()
    student = replace(student, annotated=[x[:0] for x in student.annotated])
    found = fill(bank(), [[4, 1, 2], [3, 4, 1]]).compare(student, teacher)
    assert found.assigned_weights().shape == (0,) and found.student[1].shape == (0, 5)


def test_prototypes_are_replaced_group_by_group():
    full = fill(bank(), [[4, 3, 2], [1, 1, 1]])
    student, teacher, groups = full.prototypes(0)
    assert groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    full.put(0, 1, torch.ones(1, 3), 2 * torch.ones(1, 4), torch.tensor([7]), boxes)
    assert full.prototypes(0)[2].tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert torch.equal(full.prototypes(0)[0][[0, 1, 2, 3, 5, 6]], student[[0, 1, 2, 3, 7, 8]])
    assert torch.equal(full.prototypes(0)[1][[0, 1, 2, 3, 5, 6]], teacher[[0, 1, 2, 3, 7, 8]])
    assert full.images[0, 1].tolist() == [7, -1, -1, -1]
    assert full.boxes[0, 1, 0].tolist() == [1, 2, 3, 4] and not full.boxes[0, 1, 1:].any()
    assert not full.student_0[1, 1:].any()


def test_what_does_not_fit_is_refused_and_changes_nothing():
    full = fill(bank(), [[4, 3, 2], [1, 1, 1]])
    before = {name: value.clone() for name, value in full.state_dict().items()}
    good = [torch.ones(2, 3), torch.ones(2, 4), torch.zeros(2, dtype=torch.int64), torch.ones(2, 4)]
    five = [torch.cat([part, part, part])[:5] for part in good]
    with pytest.raises(ValueError, match="4 prototypes.*GLOBAL_KNOWLEDGE.PER_CLASS.* 5"):
        full.put(0, 0, *five)
    for i, name in enumerate(("teacher", "images", "boxes"), 1):
        with pytest.raises(ValueError, match=f"{name}.*p4"):
            full.put(0, 0, *(part[:1] if k == i else part for k, part in enumerate(good)))
    with pytest.raises(ValueError, match=r"student.*p5.*\(2, 5\)"):
        full.put(1, 0, *good)
    assert all(torch.equal(before[name], value) for name, value in full.state_dict().items())


# From configs and specifications


def spec(names=("p3", "p4"), strides=(8, 16), channels=(3, 5), num_classes=3):
    features = {
        name: ShapeSpec(channels=c, stride=s) for name, s, c in zip(names, strides, channels)
    }
    return ModelSpec(features=features, num_classes=num_classes)


def config(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list(list(overrides))
    return cfg


def test_levels_are_those_of_both_networks_finest_first():
    ours = spec(("p5", "p3", "p6", "res2"), (32, 8, 64, 4), (1, 2, 3, 4))
    theirs = spec(("p3", "p4", "p5", "p6"), (8, 16, 32, 32), (5, 6, 7, 8))
    assert shared_levels([], ours, theirs) == (["p3", "p5"], [8, 32], [2, 1], [5, 7])
    assert shared_levels(["p5"], ours, theirs).names == ["p5"]
    built = PrototypeBank(config(), ours, theirs)
    assert (built.names, built.num_groups, built.per_class) == (["p3", "p5"], 3, 10)
    assert built.student_1.shape == (3, 10, 1) and built.teacher_1.shape == (3, 10, 7)
    assert built.identity_groups.shape == (0,) and built.weighted


@pytest.mark.parametrize(
    ("overrides", "theirs", "message"),
    [
        (
            (),
            spec(("res4",), (16,), (3,)),
            r"\[p3 of stride 8, p4 of stride 16\].*\[res4 of stride 16\]",
        ),
        ((), spec(strides=(4, 32)), r"p3 of stride 8.*p3 of stride 4"),
        ((), spec(num_classes=0), "teacher.*detector"),
        (("FEATURES", ["p9"]), spec(), r"GLOBAL_KNOWLEDGE.FEATURES.*student.*'p9'.*\[p3, p4\]"),
        (
            ("FEATURES", ["p4"]),
            spec(("p3",), (8,), (3,)),
            "GLOBAL_KNOWLEDGE.FEATURES.*teacher.*'p4'",
        ),
        (("FEATURES", ["p3"]), spec(strides=(4, 16)), "GLOBAL_KNOWLEDGE.FEATURES.*p3.* 8 .* 4"),
        (("GROUPS", "tribe"), spec(), "GLOBAL_KNOWLEDGE.GROUPS 'tribe'"),
        (("GROUPS", "identity"), spec(), 'GLOBAL_KNOWLEDGE.GROUPS "identity".* 3 classes'),
        (("PER_CLASS", 0), spec(), "GLOBAL_KNOWLEDGE.PER_CLASS 0"),
        (("SAMPLES", -1), spec(), "GLOBAL_KNOWLEDGE.SAMPLES -1"),
        (("FINEST_SCALE", 0.0), spec(), "GLOBAL_KNOWLEDGE.FINEST_SCALE 0.0"),
        (("GROUPS", "identity", "CLUSTERS", 0), spec(), "GLOBAL_KNOWLEDGE.CLUSTERS 0"),
    ],
)
def test_config_mistakes_are_named_in_one_line(overrides, theirs, message):
    keys = [f"DISTILLATION.GLOBAL_KNOWLEDGE.{k}" for k in overrides[::2]]
    cfg = config(*(x for pair in zip(keys, overrides[1::2]) for x in pair))
    with pytest.raises(ValueError, match=message) as error:
        PrototypeBank(cfg, spec(), theirs)
    assert "\n" not in str(error.value)


def test_clusters_need_identities():
    one = spec(num_classes=1)
    cfg = config("DISTILLATION.GLOBAL_KNOWLEDGE.GROUPS", "identity")
    with pytest.raises(ValueError, match=r"MODEL.OIM.NUM_IDS.*0 identities"):
        PrototypeBank(cfg, one, one)
    cfg.MODEL.OIM.NUM_IDS = 7
    built = PrototypeBank(cfg, one, one)
    assert built.student_0.shape == (8, 10, 3) and built.identity_groups.tolist() == [-1] * 7


# Checkpoints


def person_search_distiller(folder, terms, *overrides):
    teacher = save_teacher(folder, tiny_detector_cfg("fpn", 1, "MODEL.FPN.OUT_CHANNELS", 24))
    return distiller_of(
        "PersonSearchRCNN", *teacher, *overrides, terms=terms, base=lambda: tiny_cfg("fpn")
    )


def test_prototypes_travel_with_checkpoints_apart_from_the_student(tmp_path):
    model = person_search_distiller(
        tmp_path,
        ["GlobalKnowledgeTerm"],
        *("DISTILLATION.GLOBAL_KNOWLEDGE.GROUPS", "identity"),
        *("DISTILLATION.GLOBAL_KNOWLEDGE.CLUSTERS", 2),
    )
    kept = model.companions["PrototypeBank"]
    generator = torch.Generator().manual_seed(0)
    for level in range(kept.num_levels):
        kept.put(
            level,
            1,
            torch.randn(3, 16, generator=generator),
            torch.randn(3, 24, generator=generator),
            torch.tensor([4, 0, 2]),
            torch.rand(3, 4, generator=generator),
        )
    kept.identity_groups.copy_(torch.tensor([0, 1, 0, 1, -1, 1]))
    PersonSearchCheckpointer(model, str(tmp_path / "run")).save("model_0000001", iteration=1)
    saved = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=True)
    assert set(saved["prototypes"]) == set(kept.state_dict())
    assert not any("prototype" in name for name in saved["model"])

    again = person_search_distiller(
        tmp_path,
        ["GlobalKnowledgeTerm"],
        *("DISTILLATION.GLOBAL_KNOWLEDGE.GROUPS", "identity"),
        *("DISTILLATION.GLOBAL_KNOWLEDGE.CLUSTERS", 2),
    )
    loaded = again.companions["PrototypeBank"]
    assert loaded.is_empty
    checkpointer = PersonSearchCheckpointer(again, str(tmp_path / "run"))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert not loaded.is_empty
    for name, value in kept.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    batch = [training_input()]
    for one in (model, again):
        one.eval()
        one.training = True
    ours, theirs = losses_of(model, batch), losses_of(again, batch)
    assert ours["loss_global_knowledge"] > 0
    assert torch.equal(ours["loss_global_knowledge"], theirs["loss_global_knowledge"])


def test_a_checkpoint_without_prototypes_resumes(tmp_path, caplog):
    before = person_search_distiller(tmp_path, ["RegionClassTerm"])
    assert not before.companions
    PersonSearchCheckpointer(before, str(tmp_path / "run")).save("model_0000001", iteration=1)
    saved = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=True)
    assert saved.keys() == {"model", "terms", "iteration"}
    again = person_search_distiller(tmp_path, ["RegionClassTerm"])
    checkpointer = PersonSearchCheckpointer(again, str(tmp_path / "run"))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    after = person_search_distiller(tmp_path, ["RegionClassTerm", "GlobalKnowledgeTerm"])
    checkpointer = PersonSearchCheckpointer(after, str(tmp_path / "run"))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert after.companions["PrototypeBank"].is_empty
    assert "model_0000001.pth holds no prototypes" in caplog.text


def test_prototypes_of_other_sizes_are_refused_in_one_line(tmp_path):
    model = person_search_distiller(tmp_path, ["GlobalKnowledgeTerm"])
    PersonSearchCheckpointer(model, str(tmp_path / "run")).save("model_0000001", iteration=1)
    other = person_search_distiller(
        tmp_path, ["GlobalKnowledgeTerm"], "DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS", 3
    )
    with pytest.raises(ValueError, match="prototypes.*model_0000001.pth") as error:
        PersonSearchCheckpointer(other, str(tmp_path / "run")).resume_or_load("", resume=True)
    assert "\n" not in str(error.value)
