import struct as binary

import numpy as np
import pytest
from little_release import cells, people, put_mat, struct

from kd_search.data.io.mat import numbers_of, read_mat, struct_entries, text_of, texts_of


def test_one_variable_comes_unsqueezed(tmp_path):
    put_mat(tmp_path / "a.mat", box=np.array([[1, 2, 3, 4]], np.uint16), other=1)
    assert read_mat(str(tmp_path / "a.mat"), "box").shape == (1, 4)


def test_an_absent_file_or_variable_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.mat"):
        read_mat(str(tmp_path / "none.mat"), "Img")
    put_mat(tmp_path / "a.mat", first=1, second=2)
    with pytest.raises(ValueError, match="a.mat: .*Img.*: first, second"):
        read_mat(str(tmp_path / "a.mat"), "Img")


@pytest.mark.parametrize("begin", [b"MATLAB 7.3 MAT-file, Platform: x", b"\x89HDF\r\n\x1a\n"])
def test_a_file_of_matlab_7_3_is_refused_with_what_to_do(tmp_path, begin):
    (tmp_path / "a.mat").write_bytes(begin.ljust(512, b" ") + b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(ValueError, match="a.mat: .*MATLAB 7.3 .*'-v7'"):
        read_mat(str(tmp_path / "a.mat"), "Img")


@pytest.mark.parametrize("kept", [0, 60, 127, 140, 200])
def test_a_torn_file_is_refused(tmp_path, kept):
    put_mat(tmp_path / "a.mat", Img=np.arange(500.0))
    whole = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(whole[:kept])
    with pytest.raises(ValueError, match="a.mat: ") as error:
        read_mat(str(tmp_path / "a.mat"), "Img")
    assert "\n" not in str(error.value)


def test_something_else_is_refused(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"\xff\xd8\xff" + binary.pack("<I", 7) * 400)
    with pytest.raises(ValueError, match="a.mat: "):
        read_mat(str(tmp_path / "a.mat"), "Img")


def test_structs_in_an_array_and_in_cells_are_the_same(tmp_path):
    rows = [("p1", []), ("p2", [("a.jpg", [1, 2, 3, 4])])]
    put_mat(tmp_path / "a.mat", array=people(rows), cell=cells([people([r]) for r in rows]))
    for key in ("array", "cell"):
        entries = list(struct_entries(read_mat(str(tmp_path / "a.mat"), key), ("idname",), key))
        assert [where for where, _ in entries] == [f"{key}(1)", f"{key}(2)"]
        assert [text_of(entry["idname"], "x") for _, entry in entries] == ["p1", "p2"]


def test_what_is_no_such_struct_is_named():
    with pytest.raises(ValueError, match="x.mat: .*'box' .*: imname, nAppear"):
        list(struct_entries(struct([("a", 1)], "imname", "nAppear"), ("box",), "x.mat"))
    with pytest.raises(ValueError, match="x.mat: .*box.*float64"):
        list(struct_entries(np.zeros((1, 3)), ("box",), "x.mat"))
    with pytest.raises(ValueError, match=r"x.mat\(2\)"):
        ok = struct([(1,)], "box")
        list(struct_entries(cells([ok, np.zeros(3)]), ("box",), "x.mat"))
    with pytest.raises(ValueError, match="x.mat: "):
        list(struct_entries("text", ("box",), "x.mat"))


def test_texts_and_numbers_are_checked():
    assert numbers_of(np.array([[1, 2, 3, 4]], np.uint8), 4, "x").tolist() == [1, 2, 3, 4]
    assert numbers_of(np.zeros((1, 0)), 4, "x").shape == (0,)
    assert texts_of(cells(["a", "b"]), "x") == ["a", "b"]
    for value in ([[1, 2, 3]], [[1, 2, 3, np.nan]], [["a", "b", "c", "d"]]):
        with pytest.raises(ValueError, match="here: .*4 numbers"):
            numbers_of(np.array(value), 4, "here")
    for value in (np.zeros((1, 1)), np.array([]), np.array([""])):
        with pytest.raises(ValueError, match="here: expected a string"):
            text_of(value, "here")
    with pytest.raises(ValueError, match=r"pool\(2\): expected a string"):
        texts_of(cells(["a", 3]), "pool")
