import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_search.data import IDMap


def test_rows_follow_the_ascending_order_of_numbers():
    id_map = IDMap([932, 5, 11, 5])
    assert id_map.to_list() == [5, 11, 932]
    assert [id_map.row(i) for i in (5, 11, 932)] == [0, 1, 2]
    assert [id_map.original(row) for row in range(3)] == [5, 11, 932]
    assert len(id_map) == 3


def test_strings_are_ids_too_and_sort_as_strings():
    assert IDMap(["p2", "p10", "Ä"]).to_list() == ["p10", "p2", "Ä"]


@pytest.mark.parametrize("unlabelled", [None, -1, -2, "", "-1"])
def test_unlabelled_people_have_row_minus_one_and_take_no_row(unlabelled):
    assert IDMap([unlabelled]).to_list() == []
    assert IDMap([7]).row(unlabelled) == -1


def test_an_unknown_id_has_row_minus_one():
    assert IDMap([7]).row(8) == -1


def test_row_minus_one_is_not_the_last_id():
    with pytest.raises(IndexError, match="row -1"):
        IDMap([7]).original(-1)


@pytest.mark.parametrize("bad", [True, 1.5, [3], b"3"])
def test_ids_of_other_types_are_refused(bad):
    with pytest.raises(ValueError, match="person id"):
        IDMap([bad])


def test_numbers_and_strings_do_not_mix():
    with pytest.raises(ValueError, match="mix numbers and strings"):
        IDMap([3, "3"])


@given(st.lists(st.integers(-3, 2**40)))
def test_any_list_of_ids_survives_a_round_trip(ids):
    id_map = IDMap(ids)
    assert id_map.to_list() == sorted({i for i in ids if i >= 0})
    assert IDMap(json.loads(json.dumps(id_map.to_list()))) == id_map
    assert [id_map.row(o) for o in id_map.to_list()] == list(range(len(id_map)))


def test_maps_are_equal_only_if_all_rows_are():
    assert IDMap([1, 2]) == IDMap([2, 1]) and hash(IDMap([1, 2])) == hash(IDMap([2, 1]))
    assert IDMap([1, 2]) != IDMap([1, 3])
    assert IDMap([1]) != [1]
