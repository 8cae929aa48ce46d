"""Means per identity, and the hooks of ID tables."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from kd_search.engine import IDTableStatisticsHook
from kd_search.modeling import IDTable
from kd_search.modeling.identity_means import (
    IdentityMeans,
    IDTableRefreshHook,
    compute_identity_means,
    refresh_rows,
)
from tests.engine.toy import NUM_IDS, ToyDistillerTrainer, toy_cfg, toy_input


class Lookup(nn.Module):
    """Embeds a box by its number, which is its left edge."""

    def __init__(self, embeddings):
        super().__init__()
        self.register_parameter("embeddings", nn.Parameter(torch.as_tensor(embeddings)))
        self.dropout = nn.Dropout()
        self.frozen = nn.BatchNorm1d(1)

    def embed(self, batch, boxes):
        assert not self.training
        return self.embeddings[torch.cat(boxes)[:, 0].long()]


def images_of(person_ids, sizes):
    """Batches of one image with the boxes of the given number of people, in turn."""
    numbers = np.split(np.arange(len(person_ids)), np.cumsum(sizes)[:-1])
    for image_id, part in enumerate(numbers):
        instances = Instances((9, 9))
        left = torch.as_tensor(part, dtype=torch.float32)
        instances.gt_boxes = Boxes(torch.stack([left, left * 0, left + 1, left * 0 + 1], dim=1))
        instances.gt_person_ids = torch.as_tensor([person_ids[i] for i in part], dtype=torch.int64)
        yield [{"image_id": image_id, "instances": instances}]


def reference_rows(embeddings, person_ids, num_ids):
    """v_k = normalize(mean_i normalize(x_i)), one box after the other, in float64."""
    rows = np.zeros((num_ids, embeddings.shape[1]))
    for k in range(num_ids):
        own = [
            x / np.linalg.norm(x) for x, i in zip(embeddings.astype(float), person_ids) if i == k
        ]
        if own:
            mean = np.mean(own, axis=0)
            rows[k] = mean / np.linalg.norm(mean)
    return rows


def test_means_equal_the_definition_and_absent_identities_are_reported(caplog):
    rng = np.random.default_rng(0)
    person_ids = [2, 0, -1, 2, 2, -1, 0, 4]
    embeddings = rng.standard_normal((8, 6)).astype(np.float32) * 3
    model = Lookup(embeddings)
    means = compute_identity_means(model, list(images_of(person_ids, [3, 0, 4, 1])), 5)
    np.testing.assert_allclose(
        means.rows.numpy(), reference_rows(embeddings, person_ids, 5), atol=1e-7
    )
    assert means.counts.tolist() == [2, 0, 3, 0, 1]
    assert not means.rows[[1, 3]].any()
    assert "2 identities have no box and a row of zeros: 1, 3" in caplog.text
    expected = nn.functional.normalize(torch.from_numpy(embeddings[[2, 5]]))
    torch.testing.assert_close(means.unlabelled, expected)


def test_means_do_not_depend_on_the_order_of_the_images():
    rng = np.random.default_rng(1)
    person_ids = rng.integers(-1, 3, 60).tolist()
    model = Lookup(rng.standard_normal((60, 6)).astype(np.float32))
    images = list(images_of(person_ids, [5] * 12))
    forward = compute_identity_means(model, images, 3)
    backward = compute_identity_means(model, images[::-1], 3)
    assert torch.equal(forward.rows, backward.rows)
    assert len(forward.unlabelled) == person_ids.count(-1) > 0
    assert torch.equal(forward.unlabelled, backward.unlabelled)


def test_every_module_gets_its_own_mode_back():
    model = Lookup(np.ones((4, 2), np.float32)).train()
    model.frozen.eval()
    compute_identity_means(model, images_of([0, 1], [2]), 2)
    assert model.training and model.dropout.training and not model.frozen.training


def test_embeddings_that_are_not_finite_are_left_out_and_counted(caplog):
    embeddings = np.array([[1, 0], [np.nan, 0], [0, 1]], np.float32)
    means = compute_identity_means(Lookup(embeddings), images_of([0, 0, 1], [3]), 2)
    assert means.rows.tolist() == [[1, 0], [0, 1]] and means.counts.tolist() == [1, 1]
    assert "1 embeddings were not finite" in caplog.text


def test_identity_outside_the_table_and_empty_data_are_errors():
    model = Lookup(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="identity 3 is not among the 2"):
        compute_identity_means(model, images_of([3], [1]), 2)
    with pytest.raises(ValueError, match="no box"):
        compute_identity_means(model, [], 2)


def table_with(rows):
    table = IDTable(num_ids=len(rows), queue_size=2, embedding_dim=2, frozen=True)
    table.load_rows(torch.tensor(rows), torch.tensor([[1.0, 1.0]]))
    return table


def test_refresh_keeps_rows_without_boxes_and_measures_the_others():
    table = table_with([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 0.0]])
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    means = IdentityMeans(rows, torch.tensor([2, 1, 0, 1]), torch.zeros(0, 2))
    moved = refresh_rows(table, means)
    # Rows 0 (by 1) and 1 (by 0) are compared; 2 had no box, 3 was empty before.
    assert moved == (0.5, 1.0)
    torch.testing.assert_close(
        table.rows, torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    )
    assert table.queue.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_rows_that_stay_have_moved_by_nothing():
    rows = nn.functional.normalize(torch.randn(100, 7))
    # Of unit length but for rounding, and the cosine with itself above 1.
    rows = rows[rows.double().square().sum(dim=1) > 1]
    assert len(rows) > 10
    table = IDTable(num_ids=len(rows), queue_size=0, embedding_dim=7)
    table.load_rows(rows)
    means = IdentityMeans(rows, torch.ones(len(rows)), torch.zeros(0, 7))
    assert refresh_rows(table, means) == (0, 0)


class Clock:
    """Stands in for a trainer."""

    def __init__(self, storage):
        self.storage = storage
        self.iter = 0


def test_hooks_run_when_due_and_write_scalars_by_table():
    calls = []

    def build_rows(num_ids):
        calls.append(clock.iter)
        return IdentityMeans(torch.eye(2), torch.ones(2), torch.zeros(0, 2))

    tables = {
        "id_table": table_with([[0.6, 0.8], [0.0, 0.0]]),
        "id_table/T": table_with([[0.0, 1.0]] * 2),
    }
    hooks = [IDTableRefreshHook(3, tables, build_rows), IDTableStatisticsHook(tables, 2)]
    with EventStorage() as storage:
        clock = Clock(storage)
        for hook in hooks:
            hook.trainer = clock
        for clock.iter in range(7):
            storage.iter = clock.iter
            for hook in hooks:
                hook.after_step()
        latest = {k: v for k, (v, _) in storage.latest().items()}
    # One computation serves both tables.
    assert calls == [2, 5]
    assert latest["id_table/moved_mean"] == 0 and latest["id_table/T/rows_seen"] == 1
    assert storage.history("id_table/T/moved_max").values() == [(1.0, 2), (0.0, 5)]
    assert [v for v, _ in storage.history("id_table/rows_seen").values()] == [0.5, 1.0, 1.0]
    assert latest["id_table/queue_fill"] == 0.5


def test_trainer_refreshes_the_students_own_table_alone(tmp_path, monkeypatch):
    images = [toy_input(1, i) for i in range(40)]
    monkeypatch.setattr(
        "kd_search.engine.hooks.build_person_search_table_loader",
        lambda cfg, names: [[x] for x in images],
    )
    overrides = ("MODEL.OIM.REFRESH_PERIOD", 4, "SOLVER.MAX_ITER", 4)
    trainer = ToyDistillerTrainer(toy_cfg(tmp_path, *overrides))
    trainer.train()
    expected = compute_identity_means(trainer.model.student, [[x] for x in images], NUM_IDS)
    assert (expected.counts > 0).all()
    assert torch.equal(trainer.model.student.id_table.rows, expected.rows)
    assert not torch.equal(trainer.model.terms["ToyTerm"].table.rows, expected.rows)
    assert trainer.storage.latest()["id_table/moved_mean"][0] > 0
    # The checkpoint of that iteration has the refreshed table.
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert torch.equal(saved["id_table.rows"], expected.rows)
