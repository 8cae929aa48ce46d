"""Order and histogram of the files of a gallery."""

from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="FastAPI is not installed")

from kd_search.server.listing import Listing, folder_tree


def row(number, camera, time, found=1, seconds=0.0, state="indexed"):
    return SimpleNamespace(
        id=number,
        content=number,
        camera=camera,
        time=time,
        found=found,
        seconds=seconds,
        state=state,
        sha256=f"{number:064x}",
        path=f"/footage/{camera}/{number}.jpg",
    )


ROWS = [
    row(1, "b", 50.0),
    row(2, "a", 30.0, found=4, seconds=40.0),
    row(3, "a", None, found=2),
    row(4, "a", 10.0),
    row(5, None, 20.0),
    row(6, "a", 20.0, found=0, state="nobody"),
    row(7, "a", 10.0),
    row(8, "b", 40.0),
]


def test_files_are_in_the_order_of_time_at_each_camera():
    listing = Listing(ROWS)
    first = listing.place(4, "a")
    after = [int(listing.content[p]) for p in listing.same_camera(first, 1)]
    assert after == [7, 2, 3]  # not 5, 8 or 1, of other cameras, and the unknown time is last
    last = listing.place(3, "a")
    assert [int(listing.content[p]) for p in listing.same_camera(last, -1)] == [2, 7, 4]
    assert listing.sha256(first) == f"{4:064x}" and listing.place(99, "a") is None
    assert listing.place(5, None) is not None and list(listing.cameras) == ["a", "b"]


def test_content_at_two_cameras():
    copy = row(9, "b", 60.0)
    copy.content = 4
    listing = Listing([*ROWS, copy])
    assert listing.time[listing.place(4, "b")] == 60.0
    assert listing.time[listing.place(4, "a")] == 10.0


def test_folders_hold_those_below():
    listing = Listing(ROWS)
    assert listing.in_folders == {"/footage/None": 1, "/footage/a": 8, "/footage/b": 2}
    people = {"/f/a/x/1": 1, "/f/a/x/2": 2, "/f/a": 3, "/f/b c": 4, "/f/a/y": 5}
    tree = folder_tree(people)
    assert list(tree.items()) == [
        ("/f/a", 11),
        ("/f/a/x", 3),
        ("/f/a/x/1", 1),
        ("/f/a/x/2", 2),
        ("/f/a/y", 5),
        ("/f/b c", 4),
    ]
    # Of those above everybody, and of levels with too many, none is left.
    assert list(folder_tree(people, most=5)) == ["/f/a", "/f/a/x", "/f/a/y", "/f/b c"]
    assert folder_tree(people, most=1) == {} == folder_tree({}) == folder_tree({"/f": 3})


def test_histogram():
    histogram = Listing(ROWS).histogram(6)  # from 10 to 70, the end of the video
    assert (histogram["start"], histogram["end"], histogram["unknown"]) == (10.0, 70.0, 2)
    # The four people of the video are spread over the bins of its 40 seconds.
    assert histogram["counts"]["a"] == pytest.approx([2, 0, 1, 1, 1, 1])
    assert histogram["counts"]["b"] == [0, 0, 0, 1, 1, 0]
    assert histogram["counts"][""] == [0, 1, 0, 0, 0, 0]
    assert Listing(ROWS).people() == {"a": 8, "b": 2}


def test_nothing_is_known():
    for rows in ([], [row(1, None, None)]):
        histogram = Listing(rows).histogram(5)
        assert histogram["start"] is None and histogram["counts"] == {}
        assert histogram["unknown"] == len(rows)
