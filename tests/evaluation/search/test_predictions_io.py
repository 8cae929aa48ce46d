"""The file of detections: round trip, and refusal of whatever is not one."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from kd_search.evaluation import DetectionSet, load_detections, save_detections

FIELDS = ("offsets", "boxes", "scores", "embeddings", "query_ids", "query_embeddings")


def make_detections(image_ids=(7, 3, 12)):
    rng = np.random.default_rng(0)

    def unit(count):
        rows = rng.standard_normal((count, 6))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return DetectionSet(
        image_ids=list(image_ids),
        offsets=np.array([0, 2, 2, 5]),
        boxes=rng.uniform(0, 100, (5, 4)).astype(np.float32),
        scores=rng.random(5, dtype=np.float32),
        embeddings=unit(5),
        query_ids=np.array([4, 0]),
        query_embeddings=unit(2),
    )


@pytest.mark.parametrize("image_ids", [(7, 3, 12), ("c1s3_016471.jpg", "b", "\u4eba")])
def test_round_trip_is_exact(tmp_path, image_ids):
    saved = make_detections(image_ids)
    save_detections(tmp_path / "d.npz", saved, dataset="prw_test", use_gt_boxes=False)
    loaded, metadata = load_detections(tmp_path / "d.npz")
    assert loaded.image_ids == list(image_ids)
    assert [type(i) for i in loaded.image_ids] == [type(i) for i in image_ids]
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype
    assert loaded.image_index.tolist() == [0, 0, 2, 2, 2]
    assert metadata["dataset"] == "prw_test" and metadata["use_gt_boxes"] is False
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


def test_an_empty_set_round_trips(tmp_path):
    empty = DetectionSet(
        [], np.zeros(1, int), np.zeros((0, 4)), np.zeros(0), np.zeros((0, 0)), [], np.zeros((0, 0))
    )
    save_detections(tmp_path / "d.npz", empty)
    assert load_detections(tmp_path / "d.npz")[0].image_ids == []


def test_nothing_half_written_replaces_a_file(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    save_detections(path, make_detections())
    before = path.read_bytes()

    def disk_full(*args, **kwargs):
        args[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_detections(path, make_detections(("a", "b", "c")))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["d.npz"]


@pytest.mark.parametrize("image_ids", [(1, "a", 2), (1.5, 2, 3), (2**70, 1, 2)])
def test_image_ids_that_the_file_cannot_hold_are_refused(tmp_path, image_ids):
    with pytest.raises(ValueError, match="d.npz: image ids"):
        save_detections(tmp_path / "d.npz", make_detections(image_ids))
    assert not list(tmp_path.iterdir())


def rewrite(path, **changes):
    """Replace (None: remove) entries of a file, without any check."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scores": None}, "scores cannot be read"),
        ({"boxes": np.zeros((5, 3))}, "boxes has shape (5, 3)"),
        ({"boxes": np.zeros((4, 4))}, "offsets must ascend from 0 to 4"),
        ({"offsets": np.array([0, 3, 2, 5])}, "offsets must ascend"),
        ({"offsets": np.array([0, 2, 5])}, "offsets has shape (3,); expected (4)"),
        ({"scores": np.full(5, np.nan)}, "scores has 5 of 5"),
        ({"scores": np.array(list("abcde"))}, "scores has type <U1"),
        ({"embeddings": np.ones((5, 6))}, "embeddings has 5 of 5"),
        ({"query_ids": np.array([1, 1])}, "query_ids"),
        ({"query_ids": np.array([1.0, 2.0])}, "query_ids has type float64"),
        ({"image_ids": np.array([1, 1, 2])}, "image_ids"),
        ({"image_ids": np.zeros((3, 1), int)}, "image_ids"),
        ({"image_ids": np.zeros(3)}, "image_ids"),
        ({"metadata": np.frombuffer(b"{", np.uint8)}, "metadata"),
        ({"metadata": np.frombuffer(b"[" * 10**5, np.uint8)}, "metadata"),
        ({"metadata": np.frombuffer(b"[]", np.uint8)}, "format 'kd_search.detections'"),
        ({"metadata": np.ones(3)}, "metadata"),
        (
            {"metadata": np.frombuffer(b'{"format":"kd_search.detections","version":9}', "u1")},
            "version 9",
        ),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path, changes, message):
    path = tmp_path / "d.npz"
    save_detections(path, make_detections())
    rewrite(path, **changes)
    with pytest.raises(ValueError) as error:
        load_detections(path)
    assert one_line(error).startswith(f"{path}: ")
    assert message in one_line(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load_detections(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("keep", [0, 1, 30, 0.25, 0.5, 0.75, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "d.npz"
    save_detections(path, make_detections())
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(ValueError) as error:
        load_detections(path)
    assert one_line(error).startswith(f"{path}: ")


def test_a_flipped_byte_is_refused_or_harmless(tmp_path):
    """The archive carries check sums of the arrays; the rest of it holds nothing of ours."""
    path = tmp_path / "d.npz"
    save_detections(path, make_detections())
    whole, original = path.read_bytes(), load_detections(path)[0]
    refused = 0
    for position in range(0, len(whole), 29):
        torn = bytearray(whole)
        torn[position] ^= 0xFF
        path.write_bytes(bytes(torn))
        try:
            loaded = load_detections(path)[0]
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
        else:
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(loaded, name), getattr(original, name))
    assert refused > 10


@pytest.mark.parametrize("content", [b"not an archive at all", b"", b"\x93NUMPY\x01\x00"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_detections(path)
    assert one_line(error).startswith(f"{path}: the archive cannot be read")


def test_a_lone_array_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(ValueError, match="d.npy: .*not an .npz archive"):
        load_detections(tmp_path / "d.npy")


class Bomb:
    """Unpickling it makes a folder, which shows that something was executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def object_array(bomb):
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["whole file", "object array", "raw entry"])
def test_pickles_are_refused_and_not_executed(tmp_path, form):
    path, proof = tmp_path / "d.npz", tmp_path / "executed"
    save_detections(path, make_detections())
    if form == "whole file":
        path.write_bytes(pickle.dumps(Bomb(proof)))
    else:
        rewrite(path, boxes=None)
        entry = object_array(Bomb(proof)) if form == "object array" else pickle.dumps(Bomb(proof))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("boxes.npy", entry)
    with pytest.raises(ValueError) as error:
        load_detections(path)
    assert one_line(error).startswith(f"{path}: ")
    assert not proof.exists()


def test_an_entry_that_claims_to_be_huge_is_refused(tmp_path):
    path = tmp_path / "d.npz"
    save_detections(path, make_detections())
    rewrite(path, boxes=None)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 4)}
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("boxes.npy", header.getvalue())
    with pytest.raises(ValueError, match="d.npz: boxes"):
        load_detections(path)
