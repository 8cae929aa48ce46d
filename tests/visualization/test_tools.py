"""kd-search search and show, with a tiny random network."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from html_page import Page
from PIL import Image

from kd_search.cli import search, show
from kd_search.data import register_person_search_coco
from kd_search.visualization import GOOD_CHOICE
from tests.tiny import REPO, tiny_cfg


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """(config file, weights) of a random network that takes nearly anything for a person."""
    folder = tmp_path_factory.mktemp("network")
    cfg = tiny_cfg(
        "fpn",
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.PERSON_SEARCH.SCORE_THRESH", 0.0),
        *("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160),
    )
    torch.manual_seed(3)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "config.yaml", folder / "model.pth"


@pytest.fixture
def gallery(tmp_path):
    """Six noisy pictures, one in a subfolder, beside files that are none or broken."""
    folder = tmp_path / "gallery"
    (folder / "sub").mkdir(parents=True)
    for i in range(6):
        save_picture(folder / ("sub" if i == 5 else "") / f"{i}.png", seed=i)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    (folder / "truncated.png").write_bytes((folder / "0.png").read_bytes()[:400])
    return folder


def save_picture(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((128, 96)).save(path)


def arguments(network, gallery, output, *more, query=None):
    config, weights = network
    return [
        *("--config-file", str(config), "--weights", str(weights)),
        *("--query", str(query or gallery / "0.png"), "--gallery", str(gallery)),
        *("--output", str(output), *map(str, more)),
    ]


def test_search_ranks_the_folder_and_writes_page_and_json(network, gallery, tmp_path, capsys):
    output = tmp_path / "out" / "found.html"
    box = ("--box", 20, 10, 60, 90)
    assert search.main(arguments(network, gallery, output, *box, "--top-k", 3)) == 0
    document = json.loads(output.with_suffix(".json").read_text())
    found = document["results"]
    assert [set(entry) for entry in found] == [{"image", "box", "score", "similarity"}] * 3
    assert len({entry["image"] for entry in found}) == 3
    similarities = [entry["similarity"] for entry in found]
    assert similarities == sorted(similarities, reverse=True) and max(similarities) <= 1 + 1e-5
    assert document["query"]["box"] == [20, 10, 60, 90] and document["query"]["score"] is None
    # The query's own picture is not searched; the truncated one cannot be.
    assert document["images_searched"] == 5
    assert [message.split(":")[0] for message in document["unreadable"]] == [
        str(gallery / "truncated.png")
    ]
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines() if " similarity " in line] == [
        *("1", "2", "3")
    ]
    assert "skipped" in printed.err and "truncated.png" in printed.err
    html = output.read_text(encoding="utf-8")
    Page(html)
    # A scene and a person for the query and each of the hits.
    assert html.count("<img ") == 2 * 4
    assert "http:" not in html and "https:" not in html
    assert sorted(p.name for p in output.parent.iterdir()) == ["found.html", "found.json"]


def test_search_finds_the_same_picture_again(network, gallery, tmp_path):
    """A copy of the query's picture is another file; its most similar region is the marked one."""
    copy = gallery / "copy.png"
    copy.write_bytes((gallery / "0.png").read_bytes())
    first = tmp_path / "first.html"
    assert search.main(arguments(network, gallery, first)) == 0
    document = json.loads(first.with_suffix(".json").read_text())
    assert document["query"]["score"] is not None
    assert document["results"][0]["image"] == str(copy)
    assert document["results"][0]["similarity"] == pytest.approx(1.0, abs=1e-5)
    assert document["results"][0]["box"] == pytest.approx(document["query"]["box"], abs=1e-3)
    assert "No box was given" in first.read_text(encoding="utf-8")
    # The same box given by hand has the same embedding.
    second = tmp_path / "second.html"
    box = ("--box", *document["query"]["box"])
    assert search.main(arguments(network, gallery, second, *box)) == 0
    again = json.loads(second.with_suffix(".json").read_text())["results"]
    assert again[0]["similarity"] == pytest.approx(1.0, abs=1e-3)


def test_search_keeps_the_most_similar_of_many(network, gallery, tmp_path):
    """The running list of the best gives what sorting everything gives."""
    for k in (2, 20):
        assert search.main(arguments(network, gallery, tmp_path / f"{k}.html", "--top-k", k)) == 0
    two, all_ = (json.loads((tmp_path / f"{k}.json").read_text())["results"] for k in (2, 20))
    assert len(all_) == 5 and two == all_[:2]


def test_search_skips_links_to_nowhere_and_says_so(network, gallery, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "pictures" / name).symlink_to(gallery / name)
    (tmp_path / "pictures/link.jpg").symlink_to(tmp_path / "gone.jpg")
    argv = arguments(network, gallery, tmp_path / "a.html")
    argv[argv.index("--gallery") + 1] = str(tmp_path / "pictures")
    assert search.main(argv) == 0
    out, err = capsys.readouterr()
    assert "1 unreadable" in out and "skipped: " in err and "link.jpg" in err
    assert "link.jpg" in json.loads((tmp_path / "a.json").read_text())["unreadable"][0]


def test_search_writes_a_picture(network, gallery, tmp_path):
    output = tmp_path / "found.png"
    assert search.main(arguments(network, gallery, output, "--top-k", 2)) == 0
    assert Image.open(output).size[0] > 900
    assert output.with_suffix(".json").exists()


def test_search_takes_overrides_and_reports_an_empty_result(network, gallery, tmp_path, capsys):
    strict = ("TEST.PERSON_SEARCH.SCORE_THRESH", "1.1")
    assert search.main(arguments(network, gallery, tmp_path / "a.html", *strict)) == 2
    assert "no person was found" in capsys.readouterr().err
    box = ("--box", 20, 10, 60, 90)
    assert search.main(arguments(network, gallery, tmp_path / "a.html", *box, *strict)) == 0
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["results"] == [] and document["images_without_people"] == 5
    assert "No person was found." in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_search_uses_the_student_of_a_distillation_config(network, gallery, tmp_path):
    distilled = ("MODEL.META_ARCHITECTURE", "Distiller", "DISTILLATION.TERMS", "['IDTableTerm']")
    assert search.main(arguments(network, gallery, tmp_path / "a.html", *distilled)) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--query": "absent.png"}, "absent.png: no such query image"),
        ({"--gallery": "absent"}, "absent: no such gallery folder"),
        ({"--output": "found.txt"}, "found.txt: the name must end in .html"),
        ({"--top-k": "0"}, "--top-k must be 1 or more"),
        ({"--weights": "absent.pth"}, "absent.pth"),
        ({"--config-file": "absent.yaml"}, "absent.yaml"),
        ({"MODEL.REID_HEAD.EMBEDDING_DIM": "9"}, "the weights are not of this config"),
        ({"MODEL.RIED_HEAD.EMBEDDING_DIM": "9"}, "MODEL.REID_HEAD.EMBEDDING_DIM"),
    ],
)
def test_search_refuses_bad_input_with_one_line(
    network, gallery, tmp_path, capsys, change, message
):
    argv = arguments(network, gallery, tmp_path / "a.html")
    for key, value in change.items():
        if key in argv:
            argv[argv.index(key) + 1] = value
        else:
            argv += [key, value]
    assert search.main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and error[-1].startswith("search: ")
    assert not (tmp_path / "a.html").exists() and not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 0), (200, 10, 300, 90), (60, 10, 20, 90), (-9, -9, 0, 5)]
)
def test_search_refuses_a_box_that_marks_nothing(network, gallery, tmp_path, capsys, box):
    assert search.main(arguments(network, gallery, tmp_path / "a.html", "--box", *box)) == 2
    assert "marks nothing in this picture of 128 x 96" in capsys.readouterr().err


def test_search_of_a_folder_without_readable_pictures_is_an_error(
    network, gallery, tmp_path, capsys
):
    empty = tmp_path / "empty"
    empty.mkdir()
    argv = arguments(network, empty, tmp_path / "a.html", query=gallery / "0.png")
    assert search.main(argv) == 2
    assert "holds no image to search" in capsys.readouterr().err
    (empty / "truncated.png").write_bytes(b"\x89PNG")
    assert search.main(argv) == 2
    assert "no image could be read" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["search", "visualize_search"])
def test_tools_run_as_scripts(tool, monkeypatch, capsys):
    words = ["--config-file", "no.yaml", "--query", "no.png", "--gallery", "no"]
    words = words if tool == "search" else ["no"]
    monkeypatch.setattr(sys, "argv", [tool, *words, "--output", "a.html"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPO / "tools" / f"{tool}.py"), run_name="__main__")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    command = {"search": "search", "visualize_search": "show"}[tool]
    assert line.startswith(f"{command}: no")


@pytest.fixture
def evaluation(tmp_path):
    """(name of a registered set, two results folders) with three queries."""
    name = "visualization_test_set"
    images, annotations, lines, queries = [], [], [], []
    for i in range(4):
        save_picture(tmp_path / f"c1s1_{i:06d}.png", seed=i)
        images.append(dict(id=i, file_name=f"c1s1_{i:06d}.png", width=128, height=96))
        annotations.append(dict(id=i, image_id=i, bbox=[10, 10, 30, 60], person_id=5))
    for i in range(3):
        lines.append(f"5 10 10 30 60 c1s1_{i:06d}.png")
        hit = dict(image_id=3, bbox=[10, 10, 40, 70], score=0.9, similarity=0.8, correct=True)
        found = dict(num_gt=3, num_found=1, first_hit_rank=1, matches=[hit])
        queries.append(dict(query_id=i, AP=10.0 * i, **found))
    (tmp_path / "a.json").write_text(json.dumps(dict(images=images, annotations=annotations)))
    (tmp_path / "query_info.txt").write_text("\n".join(lines))
    register_person_search_coco(
        name, str(tmp_path / "a.json"), str(tmp_path), str(tmp_path / "query_info.txt")
    )
    folders = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        document = dict(dataset=name, metrics={"person_search": {"mAP": 10.0}}, queries=queries)
        (folder / "person_search_results.json").write_text(json.dumps(document))
        folders.append(folder)
    yield name, folders
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_visualize_draws_a_picture(evaluation, tmp_path, capsys):
    _, (folder, _) = evaluation
    output = tmp_path / "out.png"
    assert show.main([str(folder), "--output", str(output), "--queries", "2"]) == 0
    assert "2 queries (0, 2)" in capsys.readouterr().out
    assert Image.open(output).size[0] == 6 * 310 + 10


def test_visualize_compares_models_on_the_same_queries(evaluation, tmp_path):
    _, folders = evaluation
    output = tmp_path / "out.html"
    entries = [f"{label}={folder}" for label, folder in zip(("Model A", "Model B"), folders)]
    assert show.main([*entries, "--output", str(output)]) == 0
    page = Page(output.read_text(encoding="utf-8"))
    # Of each of three queries: scene and person, then of both models' only match.
    assert len(page.find("img")) == 3 * (2 + 2 * 2)
    names = [text for level, text in page.headings if level > 2]
    assert names[:3] == ["Query 0", "Model A", "Model B"]
    assert "The average precision is that of 'Model B'." in page.text


def test_visualize_takes_queries_whose_searches_work(evaluation, tmp_path, capsys):
    _, (folder, _) = evaluation
    file = folder / "person_search_results.json"
    document = json.loads(file.read_text())
    right = document["queries"][0]["matches"][0]
    document["queries"][2]["matches"] = [{**right, "correct": False}, right, right]
    file.write_text(json.dumps(document))
    argv = [str(folder), "--output", str(tmp_path / "out.html"), "--good"]
    assert show.main(argv) == 0
    assert "1 queries (2)" in capsys.readouterr().out
    assert GOOD_CHOICE in (tmp_path / "out.html").read_text(encoding="utf-8")
    assert show.main([*argv, "--top-k", "2"]) == 2
    assert "no query has two right matches among 2" in capsys.readouterr().err


def test_visualize_takes_given_queries(evaluation, tmp_path, capsys):
    _, (folder, _) = evaluation
    argv = [str(folder), "--output", str(tmp_path / "out.html"), "--query-ids", "1"]
    assert show.main(argv) == 0
    assert "1 queries (1)" in capsys.readouterr().out
    assert "These queries were given." in (tmp_path / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["{0}", "--output", "out.txt"], "out.txt: the name must end in"),
        (["absent", "--output", "out.png"], "absent: no such file"),
        (["{0}", "{1}", "--output", "out.png"], "several models need an .html file"),
        (["a={0}", "a={1}", "--output", "out.html"], "the label 'a' is given twice"),
        (["{0}", "--output", "out.html", "--dataset", "no_set"], "'no_set'"),
        (["{0}", "--output", "out.html", "--query-ids", "77"], "query 77 is in none of"),
        (["{0}", "--output", "out.html", "--top-k", "0"], "must be 1 or more"),
        (["{0}", "--output", "out.html", "--good", "--query-ids", "1"], "--good"),
    ],
)
def test_visualize_refuses_bad_input_with_one_line(evaluation, capsys, argv, message):
    folders = evaluation[1]
    assert show.main([word.format(*folders) for word in argv]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("show: ") and message in line
