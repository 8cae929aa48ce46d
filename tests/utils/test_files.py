"""JSON files that know their own checksum."""

import json

import pytest

from kd_search.utils.files import (
    read_json,
    write_json,
)
from kd_search.utils.schema import (
    Count,
    Schema,
    check_schema,
)

VALUE = {"b": [1, 2.5, None, True], "a": {"ü": "x", "10": 1, "9": 2}}


def test_a_sealed_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, VALUE, sealed=True)
    assert read_json(path, sealed=True) == VALUE
    raw = json.loads(path.read_text())
    assert len(raw.pop("sha256")) == 64 and raw == VALUE
    # However it is indented.
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_json(path, sealed=True) == VALUE


def test_an_edited_file_is_refused_until_its_checksum_is_taken_out(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, VALUE, sealed=True)
    edited = {**json.loads(path.read_text()), "b": [1]}
    path.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="a.json: .*remove 'sha256'"):
        read_json(path, sealed=True)
    del edited["sha256"]
    path.write_text(json.dumps(edited))
    assert read_json(path, sealed=True) == edited


def test_the_seal_of_others_means_nothing_here(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"sha256": "of something else"}')
    assert read_json(path) == {"sha256": "of something else"}


def test_numbers_as_keys_do_not_break_the_seal(tmp_path):
    write_json(tmp_path / "a.json", {"t": {10: 1, 9: (2, 3)}}, sealed=True)
    assert read_json(tmp_path / "a.json", sealed=True) == {"t": {"10": 1, "9": [2, 3]}}


class Inner(Schema):
    number: Count


class Outer(Schema):
    items: list[Inner]
    by_name: dict[str, Inner] = {}


@pytest.mark.parametrize(
    "value, message",
    [
        ({"items": [{"number": 1}, {"number": "2"}]}, r"f: items\[1\]\.number .*found '2'"),
        ({"items": [{"number": True}]}, r"f: items\[0\]\.number .*found True"),
        ({"items": [{"number": -1}]}, r"f: items\[0\]\.number .*found -1"),
        ({"items": [{"number": 10**5000}]}, r"f: items\[0\]\.number .*found a int"),
        ({"items": [{}]}, r"f: items\[0\]\.number is missing$"),
        ({"items": [], "by_name": {"a.b\n": {}}}, r"f: by_name\['a\.b\\n'\]\.number is missing$"),
        ({"items": [], "by_name": {3: {}}}, r"f: by_name.*found 3"),
        ({"items": [{"number": "x\n" * 999}]}, r"f: items\[0\]\.number .*found '.{1,60}$"),
        ([], "f: is wrong: .*found"),
    ],
)
def test_the_first_wrong_field_is_named_on_one_line(value, message):
    with pytest.raises(ValueError, match=message) as error:
        check_schema(value, Outer, "f")
    assert "\n" not in str(error.value)


def test_what_fits_comes_back_typed_and_other_keys_may_be_there():
    assert check_schema({"items": [{"number": 1}], "new": 3}, Outer, "f").items[0].number == 1
