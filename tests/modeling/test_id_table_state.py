"""What the identity table refuses, stores and restores."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

from kd_search.modeling.id_table import IDTable


def unit(num_rows, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, dim, generator=generator), dim=1)


def make_table(num_ids=5, queue_size=4, dim=3, seed=7, **kwargs):
    table = IDTable(num_ids=num_ids, queue_size=queue_size, embedding_dim=dim, **kwargs)
    table.load_rows(unit(num_ids, dim, seed), unit(queue_size, dim, seed + 1))
    return table


def assert_state(table, rows, queue, ptr):
    assert torch.equal(table.rows, rows)
    assert torch.equal(table.queue, queue)
    assert int(table.queue_ptr) == ptr


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["forward", "stage"])
@pytest.mark.parametrize("wrong", [5, 8, 9, -2])
def test_id_out_of_range_is_refused_and_nothing_is_staged(call, wrong):
    table = make_table(num_ids=5, queue_size=4)
    with pytest.raises(ValueError, match=f"person id {wrong} is out of range"):
        getattr(table, call)(unit(2, 3), torch.tensor([0, wrong]))
    assert not table.has_staged


@pytest.mark.parametrize("call", ["forward", "stage"])
def test_wrong_embedding_dimension_is_refused(call):
    with pytest.raises(ValueError, match=r"embeddings must be \(B, 3\).*got \(2, 7\)"):
        getattr(make_table(), call)(unit(2, 7), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_ids": 0}, "num_ids"),
        ({"queue_size": -1}, "queue_size"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.5}, "momentum"),
        ({"momentum": float("nan")}, "momentum"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        IDTable(**{"num_ids": 2, "queue_size": 2, "embedding_dim": 2, **change})


# ---- state --------------------------------------------------------------------------------------


def test_state_dict_holds_the_whole_state_and_round_trips(tmp_path):
    table, restored = make_table(), IDTable(num_ids=5, queue_size=4, embedding_dim=3)
    table.stage(unit(7, 3), torch.tensor([0, -1, -1, 2, -1, 0, -1]))
    table.commit()
    table.stage(unit(3, 3), torch.tensor([-1, -1, 1]))
    table.commit()
    torch.save(table.state_dict(), tmp_path / "table.pth")
    state = torch.load(tmp_path / "table.pth", weights_only=True)
    assert set(state) == {"rows", "queue", "queue_ptr"}
    restored.load_state_dict(state)
    assert restored.fingerprint() == table.fingerprint() and int(restored.queue_ptr) == 2

    for t in (table, restored):
        t.stage(unit(3, 3, 5), torch.tensor([-1, 4, -1]))
        t.commit()
    assert restored.fingerprint() == table.fingerprint()


def test_loading_a_state_forgets_staged_rows():
    table = make_table()
    state = copy.deepcopy(table.state_dict())
    table.stage(unit(1, 3), torch.tensor([0]))
    table.load_state_dict(state)
    assert not table.has_staged


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_ids": 6}, "number of ids is 6 in the checkpoint and 5 here"),
        ({"queue_size": 0}, "queue size is 0 in the checkpoint and 4 here"),
        ({"embedding_dim": 8}, "embedding dimension is 8 in the checkpoint and 3 here"),
    ],
)
def test_loading_a_table_of_other_size_says_what_differs(change, message):
    other = IDTable(**{"num_ids": 5, "queue_size": 4, "embedding_dim": 3, **change})
    model = torch.nn.ModuleDict({"table": make_table()})
    before = model["table"].fingerprint()
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict({f"table.{k}": v for k, v in other.state_dict().items()})
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [f"ID table 'table' does not fit: {message}"]
    assert model["table"].fingerprint() == before


def test_every_difference_is_named():
    other = IDTable(num_ids=9, queue_size=8, embedding_dim=7)
    with pytest.raises(RuntimeError, match="number of ids is 9.*queue size is 8.*dimension is 7"):
        make_table().load_state_dict(other.state_dict())


def test_state_of_a_newer_layout_is_refused():
    table = make_table()
    state = table.state_dict()
    assert state._metadata[""]["version"] == 1
    state._metadata[""]["version"] = 2
    with pytest.raises(RuntimeError, match="version 2.*up to 1: upgrade kd_search"):
        table.load_state_dict(state)


def test_pointer_without_its_queue_is_not_loaded():
    # What fvcore's checkpointer leaves of a table whose queue has another size.
    table, other = make_table(queue_size=4), make_table(queue_size=100)
    other.stage(unit(50, 3), torch.full((50,), -1))
    other.commit()
    state = other.state_dict()
    del state["queue"]
    missing = table.load_state_dict(state, strict=False).missing_keys
    assert missing == ["queue", "queue_ptr"] and int(table.queue_ptr) == 0
    assert torch.equal(table.rows, other.rows)


def test_load_rows_replaces_rows_and_leaves_the_queue():
    table = make_table()
    queue, rows = table.queue.clone(), unit(5, 3, 40)
    table.stage(unit(1, 3), torch.tensor([-1]))
    table.commit()
    queue[0] = unit(1, 3)[0]
    table.load_rows(rows)
    rows.zero_()
    assert_state(table, unit(5, 3, 40), queue, 1)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_load_rows_fills_the_queue_from_its_start(count):
    table = make_table(queue_size=4)
    queue = unit(count, 3, 41)
    table.load_rows(unit(5, 3), queue)
    assert torch.equal(table.queue, torch.cat([queue, torch.zeros(4 - count, 3)]))
    assert int(table.queue_ptr) == count % 4


@pytest.mark.parametrize(
    "rows, queue, message",
    [
        (torch.zeros(6, 3), None, r"rows of the ID table must be \(5, 3\), got \(6, 3\)"),
        (torch.zeros(5, 4), None, r"rows of the ID table must be \(5, 3\), got \(5, 4\)"),
        (torch.zeros(5), None, "rows of the ID table"),
        (torch.zeros(5, 3), torch.zeros(5, 3), r"queue of the ID table must be \(at most 4, 3\)"),
        (torch.full((5, 3), float("nan")), None, "rows of the ID table have 5"),
        (torch.zeros(5, 3), torch.full((2, 3), float("inf")), "queue of the ID table have 2"),
    ],
)
def test_load_rows_refuses_what_does_not_fit(rows, queue, message):
    table = make_table()
    before = table.fingerprint()
    with pytest.raises(ValueError, match=message):
        table.load_rows(rows, queue)
    assert table.fingerprint() == before


def test_fingerprint_sees_every_part_of_the_state():
    prints = {make_table().fingerprint()}
    for name in ("rows", "queue", "queue_ptr"):
        table = make_table()
        assert table.fingerprint() in prints
        getattr(table, name).view(-1)[-1].add_(1)
        prints.add(table.fingerprint())
    assert len(prints) == 4
    assert len(prints.pop()) == 64


def test_copy_of_a_table_is_independent():
    table = make_table()
    table.stage(unit(1, 3), torch.tensor([0]))
    twin = copy.deepcopy(table)
    before = table.fingerprint()
    twin.commit()
    assert table.has_staged and table.fingerprint() == before != twin.fingerprint()


def test_repr_names_the_sizes():
    text = repr(make_table(frozen=True))
    assert "num_ids=5" in text and "queue_size=4" in text and "frozen=True" in text
