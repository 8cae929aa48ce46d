"""Prototypes of groups and levels: the picks of the pure functions, and clusters of people."""

import pytest
import torch

from kd_search.distillation.methods.global_knowledge import PrototypeBank
from kd_search.distillation.methods.global_knowledge.candidates import CandidateBoxes
from kd_search.distillation.methods.global_knowledge.features import Candidates, HalfRows
from kd_search.distillation.methods.global_knowledge.selection import (
    cluster_identities,
    finite_candidates,
    pick_prototypes,
)
from kd_search.losses import density_filter, select_prototypes

DIMS = (6, 9), (7, 5)


def candidates_of(classes, person_ids=None, seed=0):
    """Clouds of features around a few centres, all images different."""
    generator = torch.Generator().manual_seed(seed)
    n = len(classes)
    centre = torch.randint(0, 4, (n,), generator=generator)

    def cloud(dim):
        centres = torch.randn(4, dim, generator=generator)
        return 3 * (centres[centre] + 0.3 * torch.randn(n, dim, generator=generator))

    boxes = torch.rand(n, 4, generator=generator)
    ids = torch.full((n,), -1) if person_ids is None else torch.tensor(person_ids)
    return Candidates(
        torch.arange(n) * 3,
        CandidateBoxes(torch.zeros(n, dtype=torch.int64), boxes, torch.tensor(classes), ids),
        [cloud(dim) for dim in DIMS[0]],
        [HalfRows.pack(cloud(dim)) for dim in DIMS[1]],
    )


def bank_of(num_classes=4, per_class=5, **options):
    return PrototypeBank(
        ["p2", "p3"], [4, 8], *DIMS, num_classes=num_classes, per_class=per_class, **options
    )


def fill(bank, picked):
    for prototypes in picked:
        bank.put(*prototypes)
    return bank


def test_picks_of_every_class_and_level_are_those_of_the_functions_by_hand():
    classes = [0] * 30 + [1] * 17 + [3] * 2
    order = torch.randperm(len(classes)).tolist()
    candidates = candidates_of([classes[i] for i in order])
    bank = bank_of()
    options = {"percentile": 30.0, "bandwidth": 0.2}
    picked = pick_prototypes(candidates, bank, alpha=3.0, **options)
    assert [(p.level, p.group) for p in picked] == [(i, c) for i in range(2) for c in range(4)]
    for p in picked:
        rows = (candidates.found.classes == p.group).nonzero().flatten()
        student = candidates.student[p.level][rows]
        teacher = candidates.teacher[p.level].unpack()[rows]
        dense = density_filter(student, teacher, **options)
        chosen = rows[
            select_prototypes(student, teacher, dense, num_prototypes=5, alpha=3.0).indices
        ]
        assert torch.equal(p.images, candidates.images[chosen])
        assert torch.equal(p.boxes, candidates.found.boxes[chosen])
        assert torch.equal(p.student, candidates.student[p.level][chosen])
        assert torch.equal(p.teacher, candidates.teacher[p.level].unpack()[chosen])
        if p.group == 0:
            assert len(chosen) == 5 and len(set(chosen.tolist())) == 5
    # Levels pick for themselves, and so do other options.
    assert not torch.equal(picked[0].images, picked[4].images)
    others = pick_prototypes(candidates, bank, percentile=0.0, alpha=0.0)
    assert any(not torch.equal(x.images, y.images) for x, y in zip(picked, others))
    fill(bank, picked)
    assert bank.filled.sum(dim=2).tolist() == [
        [len(picked[4 * i + c].images) for c in range(4)] for i in range(2)
    ]


def test_fewer_candidates_than_prototypes_and_none_at_all():
    candidates = candidates_of([0, 0, 3])
    bank = fill(bank_of(), pick_prototypes(candidates, bank_of(), percentile=0.0))
    assert bank.filled.sum(dim=2).tolist() == [[2, 0, 0, 1]] * 2
    assert bank.images[0, 3].tolist() == [6, -1, -1, -1, -1]
    # The next generation of a class that lost its images has none either.
    fill(bank, pick_prototypes(candidates_of([3]), bank))
    assert bank.filled.sum(dim=2).tolist() == [[0, 0, 0, 1]] * 2
    fill(bank, pick_prototypes(candidates_of([]), bank))
    assert bank.is_empty


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="percentile"):
        pick_prototypes(candidates_of([0, 0]), bank_of(), percentile=101.0)
    with pytest.raises(ValueError, match="alpha"):
        pick_prototypes(candidates_of([0, 0]), bank_of(), alpha=-1.0)


def test_candidates_with_infinite_features_are_left_out_at_all_levels():
    candidates = candidates_of([0] * 6)
    assert finite_candidates(candidates) == (candidates, 0)
    candidates.student[1][2, 0] = float("nan")
    rows = candidates.teacher[0].unpack()
    rows[4, 3] = float("inf")
    candidates.teacher[0] = HalfRows.pack(rows)
    kept, left_out = finite_candidates(candidates)
    assert left_out == 2 and kept.images.tolist() == [0, 3, 9, 15]
    assert len(kept.student[0]) == len(kept.teacher[1].rows) == 4
    pick_prototypes(kept, bank_of())


def people(sizes, seed=0):
    """Candidates of as many kinds as there are sizes; the members of a kind look alike."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [kind for kind, size in enumerate(sizes) for _ in range(size)]
    ids = list(range(len(kinds))) * 3
    candidates = candidates_of([0] * len(ids), ids)
    for level, dim in enumerate(DIMS[1]):
        # Apart in angle, of any length.
        centres = torch.nn.functional.normalize(torch.randn(len(sizes), dim, generator=generator))
        rows = centres[[kinds[i] for i in ids]]
        rows = rows + 0.02 * torch.randn(rows.shape, generator=generator)
        lengths = torch.rand(len(ids), 1, generator=generator) * 100 + 0.1
        candidates.teacher[level] = HalfRows.pack(rows * lengths)
    return candidates, kinds


def test_identities_that_look_alike_to_the_teacher_share_a_cluster():
    candidates, kinds = people([4, 5, 3])
    groups = cluster_identities(candidates, 20, 3, seed=4)
    assert groups[12:].tolist() == [-1] * 8
    by_kind = {
        kind: {int(groups[i]) for i, k in enumerate(kinds) if k == kind} for kind in (0, 1, 2)
    }
    assert all(len(found) == 1 for found in by_kind.values())
    assert set.union(*by_kind.values()) == {0, 1, 2}
    assert torch.equal(groups, cluster_identities(candidates, 20, 3, seed=4))


def test_the_student_has_no_part_in_clusters():
    candidates, _ = people([4, 5, 3])
    expected = cluster_identities(candidates, 12, 3, seed=4)
    candidates.student = [torch.randn_like(level) for level in candidates.student]
    assert torch.equal(cluster_identities(candidates, 12, 3, seed=4), expected)


def test_fewer_identities_than_clusters_have_one_each_and_the_unlabelled_none():
    candidates = candidates_of([0] * 6, [7, -1, 2, 7, -1, 9])
    groups = cluster_identities(candidates, 10, 5, seed=0)
    assert groups.tolist() == [-1, -1, 0, -1, -1, -1, -1, 1, -1, 2]
    assert cluster_identities(candidates, 10, 3, seed=0).tolist() == groups.tolist()
    unlabelled = candidates_of([0] * 3, [-1] * 3)
    assert cluster_identities(unlabelled, 4, 2, seed=0).tolist() == [-1] * 4
    assert cluster_identities(candidates_of([]), 4, 2, seed=0).tolist() == [-1] * 4


def test_identities_that_are_all_alike_do_not_stop_the_clustering(recwarn):
    candidates = candidates_of([0] * 8, list(range(8)))
    candidates.teacher = [
        HalfRows.pack(level.unpack()[:1].expand(8, -1)) for level in candidates.teacher
    ]
    groups = cluster_identities(candidates, 8, 3, seed=0)
    assert len(groups.unique()) == 1
    assert not recwarn.list


def test_people_are_picked_cluster_by_cluster_and_the_unlabelled_never():
    ids = [0, 1, 2, 3, -1, 0, 1, 2, 3, -1, 4]
    candidates = candidates_of([0] * 11, ids)
    bank = bank_of(1, 5, num_identities=6, clusters=3)
    bank.identity_groups.copy_(torch.tensor([2, 0, 2, 0, -1, -1]))
    fill(bank, pick_prototypes(candidates, bank, percentile=0.0))
    assert bank.filled.sum(dim=2).tolist() == [[4, 0, 4]] * 2
    assert set(bank.images[0, 0, :4].tolist()) == {3, 9, 18, 24}
    assert set(bank.images[1, 2, :4].tolist()) == {0, 6, 15, 21}
