"""kd-search index, search and forget on a gallery, with a network that finds coloured squares."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from kd_search.cli import main
from kd_search.gallery import Gallery
from kd_search.gallery.capture import parse_time
from tests.gallery.fake_searcher import FakeSearcher, save

CALIBRATION = {
    "points": [
        {"false_match_rate": 1e-2, "threshold": 0.6},
        {"false_match_rate": 1e-3, "threshold": 0.9},
    ]
}


@pytest.fixture
def network(monkeypatch):
    """The network of every command."""
    searcher = FakeSearcher()
    searcher.manifest["calibration"] = CALIBRATION

    class Runtime:
        @staticmethod
        def load(path, threads=None):
            if path != "student.onnx":
                raise FileNotFoundError(f"model {path} does not exist")
            return searcher

    monkeypatch.setattr("kd_search.runtime.PersonSearcher", Runtime, raising=False)
    return searcher


@pytest.fixture
def indexed(tmp_path, network, capsys, monkeypatch):
    """A gallery "people" of four pictures of two cameras in the working directory."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "f" / "door" / "20261101_080000.png", (1, 2))
    save(tmp_path / "f" / "door" / "20261102_080000.png", (3,))
    save(tmp_path / "f" / "gate" / "20261103_080000.png", (1, 4))
    save(tmp_path / "f" / "gate" / "20261104_080000.png")
    save(tmp_path / "query.png", (9, 1))
    pattern = r"/(?P<camera>\w+)/(?P<time>\d{8}_\d{6})\."
    command = ["index", "f", "--model", "student.onnx", "--gallery", "people"]
    assert main([*command, "--path-pattern", pattern]) == 0
    out, err = capsys.readouterr()
    assert "4 files" in out and "5 people to search" in out and "personal data" in err
    return tmp_path


def search(*arguments, query="query.png", box=("20", "0", "40", "20")):
    command = ["search", "--gallery", "people", "--model", "student.onnx", *arguments]
    if query:
        command += ["--query", query, "--box", *box]
    assert main([*command, "--output", "found.json"]) == 0
    with open("found.json") as file:
        return json.load(file)


def names(document):
    return [os.path.basename(r["path"])[:8] for r in document["results"]]


def test_the_second_run_needs_no_rules(indexed, capsys):
    save(indexed / "f" / "yard" / "20261105_080000.png", (5,))
    assert main(["index", "f", "--model", "student.onnx", "--gallery", "people"]) == 0
    out, err = capsys.readouterr()
    assert "4 unchanged" in out and "1 new with 1 people" in out and "personal" not in err
    assert Gallery("people").cameras == ["door", "gate", "yard"]


def test_search(indexed, capsys):
    document = search()
    assert names(document)[:2] == ["20261101", "20261103"]
    first = document["results"][0]
    assert first["box"] == [0, 0, 20, 20] and first["similarity"] == pytest.approx(1, abs=1e-6)
    assert (first["camera"], first["time_text"]) == ("door", "2026-11-01 08:00:00")
    assert [r["verdict"] for r in document["results"]][:2] == ["likely", "likely"]
    assert document["results"][2]["verdict"] == "unlikely"
    assert document["calibration"] == CALIBRATION
    table = capsys.readouterr().out
    assert "likely" in table and first["id"] in table and first["path"] in table


def test_filters_and_groups(indexed):
    assert names(search("--camera", "gate")) == ["20261103"]
    assert names(search("--from", "2026-11-02", "--to", "2026-11-02")) == ["20261102"]
    assert set(names(search("--folder", "f/door"))) == {"20261101", "20261102"}
    assert len(search("--per", "person")["results"]) == 5
    assert len(search("--per", "camera")["results"]) == 2
    assert len(search("--top-k", "1")["results"]) == 1


def test_without_a_box_the_highest_score_is_meant(indexed):
    save(indexed / "one.png", (3,), height=41)
    command = ["search", "--gallery", "people", "--model", "student.onnx", "--query", "one.png"]
    assert main([*command, "--output", "found.json"]) == 0
    document = json.loads((indexed / "found.json").read_text())
    assert names(document)[0] == "20261102" and document["query"][0]["score"] > 0.8


def test_the_query_picture_is_left_out(indexed, capsys):
    query = "f/gate/20261103_080000.png"
    capsys.readouterr()
    document = search(query=query, box=("0", "0", "20", "20"))
    assert "left out" in (out := capsys.readouterr().out) and query in out
    assert names(document) == ["20261101", "20261102"]


def test_several_pictures_and_earlier_results(indexed):
    found = search()["results"]
    again = search("--person", found[0]["id"], query=None)
    assert names(again)[0] == names({"results": found})[1]
    assert again["query"][0]["image"] == found[0]["path"]
    assert found[0]["id"] not in [result["id"] for result in again["results"]]
    both = search("--person", found[0]["id"])
    assert len(both["query"]) == 2
    # Without the model nothing is said of what a similarity means.
    arguments = ["search", "--gallery", "people", "--person", found[0]["id"]]
    assert main([*arguments, "--output", "found.json"]) == 0
    document = json.loads((indexed / "found.json").read_text())
    assert {r["verdict"] for r in document["results"]} == {"not calibrated"}


def test_marks_refine_and_are_undone(indexed):
    plain = search("--per", "person")["results"]
    third = plain[2]["id"]
    marked = search("--per", "person", "--marks", "m.json", "--right", third)["results"]
    position = [r["id"] for r in marked].index(third)
    assert marked[position]["mark"] == "right"
    # The similarity that is shown stays that to the query.
    by_id = {r["id"]: r["similarity"] for r in plain}
    assert all(r["similarity"] == pytest.approx(by_id[r["id"]], abs=1e-6) for r in marked)
    assert [r["id"] for r in marked] != [r["id"] for r in plain] or position <= 2
    less = search("--per", "person", "--marks", "m.json", "--wrong", plain[0]["id"])["results"]
    assert plain[0]["id"] not in [r["id"] for r in less] and len(less) == len(plain) - 1
    back = search("--per", "person", "--marks", "m.json", "--undo")["results"]
    assert [r["id"] for r in back] == [r["id"] for r in marked]
    back = search("--per", "person", "--marks", "m.json", "--undo")["results"]
    assert [r["id"] for r in back] == [r["id"] for r in plain]


def test_the_page_shows_every_result(indexed):
    command = ["search", "--gallery", "people", "--model", "student.onnx", "--query", "query.png"]
    assert main([*command, "--output", "found.html", "--per", "person"]) == 0
    page = (indexed / "found.html").read_text()
    assert page.count("data:image/jpeg") == 2 * 6 and "likely" in page
    assert "rank 5" in page and "door 2026-11-01 08:00:00" in page
    assert json.loads((indexed / "found.json").read_text())["results"]


def test_a_picture_that_is_gone_or_changed_is_still_a_result(indexed):
    (indexed / "f" / "door" / "20261101_080000.png").unlink()
    command = ["search", "--gallery", "people", "--model", "student.onnx", "--query", "query.png"]
    assert main([*command, "--output", "found.html"]) == 0
    page = (indexed / "found.html").read_text()
    assert "no picture" in page and "20261101_080000.png" in page


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--query"),
        (["--query", "query.png", "--output", "found.txt"], "found.txt"),
        (["--query", "query.png", "--top-k", "0"], "--top-k"),
        (["--query", "missing.png"], "missing.png"),
        (["--query", "f"], "f: "),
        (["--query", "query.png", "--box", "0", "0", "1", "1", "--box", "0", "0", "1", "1"], "2"),
        (["--query", "query.png", "--camera", "roof"], "roof"),
        (["--query", "query.png", "--from", "yesterday"], "yesterday"),
        (["--query", "query.png", "--undo"], "--marks"),
        (["--query", "query.png", "--wrong", "99.9"], "99.9"),
        (["--person", "99.9"], "99.9"),
    ],
)
def test_wrong_searches(indexed, capsys, arguments, named):
    capsys.readouterr()
    command = ["search", "--gallery", "people", "--model", "student.onnx", "--marks", "marks.json"]
    if "--undo" in arguments:
        command = command[:-2]
    assert main([*command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert named in err and err.count("\n") == 1
    assert not {"found.txt", "found.json", "marks.json"} & set(os.listdir(indexed))


def test_a_query_needs_the_model_and_the_same_one(indexed, network, capsys):
    assert main(["search", "--gallery", "people", "--query", "query.png"]) == 2
    assert "--model" in capsys.readouterr().err
    network.manifest["file_sha256"] = "cd" * 32
    for command in ("search", "index"):
        arguments = ["f"] if command == "index" else ["--query", "query.png"]
        assert main([command, "--gallery", "people", "--model", "student.onnx", *arguments]) == 2
        assert "cdcdcdcd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere", "--model", "student.onnx"], "nowhere"),
        (["f", "--model", "other.onnx"], "other.onnx"),
        (["f", "--model", "student.onnx", "--path-pattern", "("], "--path-pattern"),
        (["f", "--model", "student.onnx", "--table", "t.csv"], "t.csv"),
        (["f", "--model", "student.onnx", "--max-pixels", "0"], "--max-pixels"),
        (["f", "--model", "student.onnx", "--retention", "-1"], "--retention"),
    ],
)
def test_wrong_indexing(indexed, capsys, arguments, named):
    capsys.readouterr()
    assert main(["index", "--gallery", "people", *arguments]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1


def test_wrong_indexing_makes_no_gallery(indexed, capsys):
    for arguments in (["nowhere"], ["f", "--path-pattern", "("], ["f", "--model", "other.onnx"]):
        assert main(["index", "--model", "student.onnx", "--gallery", "new", *arguments]) == 2
        assert not (indexed / "new").exists()


def test_forgetting(indexed, capsys):
    found = search("--per", "person")["results"]
    other = next(r["id"] for r in found if "20261103" in r["path"] and r["id"].endswith(".1"))
    forget = ["forget", "--gallery", "people"]
    assert main([*forget, "--picture", "f/door/20261101_080000.png", "--dry-run"]) == 0
    assert len(Gallery("people")) == 5
    capsys.readouterr()
    picture = ["--picture", "f/door/20261101_080000.png"]
    assert main([*forget, *picture, "--person", other]) == 0
    assert "1 files and 3 people" in capsys.readouterr().out
    assert main(["index", "f", "--model", "student.onnx", "--gallery", "people"]) == 0
    assert "must not be indexed" in capsys.readouterr().out
    assert len(Gallery("people")) == 2
    assert main([*forget, "--from", "2026-11-02", "--to", "2026-11-03", "--camera", "gate"]) == 0
    assert names(search("--per", "person")) == ["20261102"]


def test_retention_and_the_time_of_exif(indexed, capsys, monkeypatch):
    now = parse_time("2026-11-05")
    monkeypatch.setattr("kd_search.gallery.indexing.wall_clock", lambda unix: now)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2026:11:03 09:30:00"
    for number, name in enumerate(("yard/named.jpg", "yard/20261104_100000.jpg")):
        path = save(indexed / "f" / name, (7 + number,))
        Image.open(path).save(path, exif=exif)
    command = ["index", "f", "--model", "student.onnx", "--gallery", "people"]
    assert main(command) == 0
    found = {r["path"][-10:]: r for r in search("--from", "2026-11-03")["results"]}
    assert found["/named.jpg"]["time_text"] == "2026-11-03 09:30:00"
    assert found["100000.jpg"]["time_text"] == "2026-11-04 10:00:00"  # the path counts first
    assert main([*command, "--retention", "2.5"]) == 0
    assert "2 files removed and 2 left out by the retention" in capsys.readouterr().out
    assert main(command) == 0  # kept
    assert "2 files left out by the retention" in capsys.readouterr().out
    assert main([*command, "--retention", "0"]) == 0
    assert "2 new with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--picture"),
        (["--picture", "nowhere.png"], "nowhere.png"),
        (["--person", "99.0"], "99.0"),
        (["--person", "x"], "x"),
        (["--from", "2030-01-01"], "nothing was removed"),
    ],
)
def test_wrong_forgetting(indexed, capsys, arguments, named):
    before = len(Gallery("people"))
    capsys.readouterr()
    assert main(["forget", "--gallery", "people", *arguments]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1 and len(Gallery("people")) == before


def test_a_copy_or_a_hash_names_a_picture_too(indexed):
    os.rename("f/door/20261102_080000.png", "elsewhere.png")
    assert main(["forget", "--gallery", "people", "--picture", "elsewhere.png"]) == 0
    row = next(row for row in Gallery("people").files if "20261103" in row.path)
    assert main(["forget", "--gallery", "people", "--picture", row.sha256]) == 0
    assert names(search()) == ["20261101"]


def test_no_command_of_a_gallery_imports_torch(indexed):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kd_search.cli import main\n"
        "person = next(iter(__import__('kd_search.gallery').gallery.Gallery('people')"
        ".search([1.0] + 7 * [0.0], 1))).id\n"
        "assert main(['search', '--gallery', 'people', '--person', person, '--output',"
        " 'p.html']) == 0\n"
        "assert main(['forget', '--gallery', 'people', '--person', person]) == 0\n"
        "print(sorted({'torch', 'detectron2', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and (indexed / "p.html").exists()
