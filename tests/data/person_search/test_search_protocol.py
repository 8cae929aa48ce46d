"""The fast reader of protocol files against scipy, and what both refuse."""

import dataclasses
import struct as binary
import zlib

import numpy as np
import pytest
from little_release import located, protocol, put_mat, struct
from scipy.io import loadmat, savemat

from kd_search.data.io.mat import read_mat
from kd_search.data.io.mat_stream import OtherLayoutError
from kd_search.data.person_search import search_protocol
from kd_search.data.person_search.search_protocol import _Collector, read_search_protocol

ROWS = [
    ("p1", "a.jpg", [1, 2, 3, 4], [("b.jpg", [5, 6, 7, 8]), ("a.jpg", None), ("b.jpg", None)]),
    ("p22222", "s12345.jpg", [1, 2, 3, 70000], []),
    ("p3", "c.jpg", [0.5, 2, 3, 4], [("a.jpg", None), ("c.jpg", [1.25, 2, 3, 4])]),
]


def _fast(path, key):
    with open(path, "rb") as stream:
        return _Collector("x").take_stream(stream, key)


def _slow(path, key):
    return _Collector("x").take_array(read_mat(str(path), key))


def _assert_equal(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def test_queries_entries_and_matches_are_those_of_the_file(tmp_path):
    put_mat(tmp_path / "g.mat", TestG3=protocol(ROWS))
    read = read_search_protocol(str(tmp_path / "g.mat"), "TestG3")
    assert read.query_images == ["a.jpg", "s12345.jpg", "c.jpg"]
    assert read.query_names == ["p1", "p22222", "p3"]
    assert read.query_boxes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 70000], [0.5, 2, 3, 4]]
    assert read.offsets.tolist() == [0, 3, 3, 5]
    assert read.entry_images.tolist() == [b"b.jpg", b"a.jpg", b"b.jpg", b"a.jpg", b"c.jpg"]
    assert read.match_entries.tolist() == [0, 4]
    assert read.match_boxes.tolist() == [[5, 6, 7, 8], [1.25, 2, 3, 4]]
    assert read.entry_at(4).endswith("g.mat: TestG3(3).Gallery(2)")
    assert read.query_at(1).endswith("g.mat: TestG3(2).Query")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_fast_reader_agrees_with_scipy(tmp_path, compressed, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for query in range(12):
        gallery = []
        for _ in range(int(rng.integers(0, 9))):
            kind = rng.choice([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
            box = rng.integers(0, 100, 4).astype(kind) if rng.random() < 0.5 else None
            # From names that fit into the tag of their element up to long ones.
            gallery.append(("s" * int(rng.integers(1, 30)), box))
        rows.append((f"p{10**query}", "a.jpg", rng.random(4) * 1000, gallery))
    path = tmp_path / "g.mat"
    savemat(path, {"TestG9": protocol(rows, occlusion="much")}, do_compression=compressed)
    _assert_equal(_fast(path, "TestG9"), _slow(path, "TestG9"))


def test_data_that_looks_like_a_tag_does_not_mislead(tmp_path):
    # As bytes, this number is the tag of a matrix of 48 bytes.
    trap = binary.unpack("<d", binary.pack("<II", 14, 48))[0]
    gallery = [("a.jpg", [trap, 2.5, 3, 4]), ("b.jpg", [1, trap, trap, 4]), ("c.jpg", None)]
    put_mat(tmp_path / "g.mat", TestG3=protocol([("p1", "a.jpg", [1, 2, 3, 4], gallery)]))
    fast = _fast(tmp_path / "g.mat", "TestG3")
    assert fast.match_boxes[0].tolist() == [trap, 2.5, 3, 4]
    _assert_equal(fast, _slow(tmp_path / "g.mat", "TestG3"))


def test_a_layout_that_the_fast_reader_does_not_know_is_left_to_scipy(tmp_path):
    path = tmp_path / "g.mat"
    # Letters outside of ASCII take two bytes, which scipy writes in UTF-16 or UTF-8.
    rows = [("p1", "ä.jpg", [1, 2, 3, 4], [("ö.jpg", [1, 2, 3, 4]), ("u.jpg", None)])]
    put_mat(path, before=1, TestG2=protocol(rows))
    with pytest.raises(OtherLayoutError):
        _fast(path, "TestG2")
    read = read_search_protocol(str(path), "TestG2")
    assert read.query_images == ["ä.jpg"]
    assert read.entry_images.tolist() == ["ö.jpg".encode(), b"u.jpg"]


def test_the_real_file_holds_what_it_states(real_data):
    path = real_data("cuhk_sysu_mini") / "annotation/test/train_test/TestG100.mat"
    read = read_search_protocol(str(path), "TestG100")
    assert len(read.query_images) == 2900 and len(set(read.query_names)) == 2900
    assert (np.diff(read.offsets) == 100).all()
    assert len(set(np.unique(read.entry_images)) | {n.encode() for n in read.query_images}) == 6978
    assert len(read.match_entries) == 5447
    matches = dict(zip(read.match_entries.tolist(), read.match_boxes.tolist()))
    raw = loadmat(path)["TestG100"]
    for q in range(0, 2900, 29):
        query, gallery = raw[0, q]["Query"][0, 0], raw[0, q]["Gallery"]
        assert read.query_images[q] == query["imname"][0]
        assert read.query_names[q] == query["idname"][0]
        assert read.query_boxes[q].tolist() == query["idlocate"][0].tolist()
        for i in range(100):
            entry = gallery[0, i]
            assert read.entry_images[100 * q + i] == entry["imname"][0].encode()
            boxes = entry["idlocate"].tolist()
            assert [matches[100 * q + i]] == boxes if 100 * q + i in matches else boxes == [[]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3), "TestG1: expected a struct with Query, Gallery, got float64"),
        (struct([(1,)], "Query"), "TestG1: no field 'Gallery' .*: Query"),
        (struct([(1, 2)], "Query", "Gallery"), r"TestG1\(1\).Query: expected a struct"),
        (protocol([]), "TestG1: holds no query"),
        (
            protocol([("p1", "a", [1, 2, 3, 4], [("a", None)]), ("p2", "a", [1, 2, 3], [])]),
            r"TestG1\(2\).Query.idlocate: expected 4 numbers",
        ),
        (protocol([("p1", "a", None, [])]), r"TestG1\(1\).Query.idlocate: the query has no box"),
        (protocol([("", "a", [1, 2, 3, 4], [])]), r"TestG1\(1\).Query.idname: expected a string"),
        (
            protocol([("p1", "a", [1, 2, 3, 4], [("a", None), ("b", [1, 2])])]),
            r"TestG1\(1\).Gallery\(2\).idlocate: expected 4 numbers",
        ),
        (
            struct(
                [
                    (
                        struct([("a", located([1, 2, 3, 4]), "p")], "imname", "idlocate", "idname"),
                        struct([("a",)], "imname"),
                    )
                ],
                "Query",
                "Gallery",
            ),
            r"TestG1\(1\).Gallery: no field 'idlocate'",
        ),
    ],
)
def test_another_structure_is_refused_with_its_entry(tmp_path, value, message):
    put_mat(tmp_path / "g.mat", TestG1=value)
    with pytest.raises(ValueError, match=f"g.mat: {message}"):
        read_search_protocol(str(tmp_path / "g.mat"), "TestG1")


def test_absent_and_torn_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="g.mat"):
        read_search_protocol(str(tmp_path / "g.mat"), "TestG1")
    put_mat(tmp_path / "g.mat", TestG3=protocol(ROWS))
    whole = (tmp_path / "g.mat").read_bytes()
    for kept in (100, 130, 200, len(whole) // 2, len(whole) - 8):
        (tmp_path / "g.mat").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="g.mat: "):
            read_search_protocol(str(tmp_path / "g.mat"), "TestG3")


def test_a_changed_bit_is_found(tmp_path):
    path = tmp_path / "g.mat"
    put_mat(path, TestG3=protocol(ROWS))
    whole = path.read_bytes()
    for place in range(128, len(whole)):
        torn = bytearray(whole)
        torn[place] ^= 1 << (place % 8)
        path.write_bytes(torn)
        with pytest.raises(ValueError, match="g.mat: "):
            read_search_protocol(str(path), "TestG3")


def test_a_size_from_a_torn_file_is_not_believed(tmp_path):
    path = tmp_path / "g.mat"
    savemat(path, {"TestG3": protocol(ROWS)})
    whole = path.read_bytes()
    # A compressed element whose content claims a name of 4 GB.
    body = binary.pack("<II", 14, 2**31) + binary.pack("<IIQ", 6, 8, 2)
    body += binary.pack("<IIii", 5, 8, 1, 1) + binary.pack("<II", 1, 2**32 - 8)
    packed = zlib.compress(body)
    path.write_bytes(whole[:128] + binary.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(ValueError, match="g.mat"):
        read_search_protocol(str(path), "TestG3")


def test_scipy_is_not_needed_for_files_as_the_release_has_them(tmp_path, monkeypatch):
    put_mat(tmp_path / "g.mat", TestG3=protocol(ROWS))
    monkeypatch.setattr(search_protocol, "read_mat", lambda *_: pytest.fail("scipy was asked"))
    assert len(read_search_protocol(str(tmp_path / "g.mat"), "TestG3").query_names) == 3
