"""Documents are made from results files, and differ where these do."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import REPO

from kd_search.cli import main
from kd_search.experiments import pack_queries, read_study, write_study
from kd_search.experiments.documents import DocumentMaker, write_filled

FILE = "results/study.json"
DOCUMENT = f"""# A project

It gains <!-- value: {FILE} "with a teacher" mAP gain --><!-- /value -->.

## Results

<!-- results: {FILE} table metrics=mAP -->
<!-- /results -->

<!-- results: {FILE} figure=docs/images/rows.svg -->
<!-- /results -->
"""


def run(row, seed, value, **more):
    queries = [{"AP": value + step, "query_id": step} for step in range(5)]
    return {
        "row": row,
        "seed": seed,
        "metrics": {"mAP": value + 2.0, "top1": 50.0},
        "per_query": {"mAP": pack_queries(queries)},
        "iterations": 100,
        "environment": 0,
        "opts": ["SOLVER.MAX_ITER", "100", "MODEL.RESNETS.WIDTH", "0.5"],
        **more,
    }


def study(**more):
    return {
        "format": 1,
        "command": "python projects/X/ablate.py --seeds 1 2",
        "dataset": "somewhere_test",
        "layout": {"metrics": ["mAP", "top1"], "base": "none"},
        "rows": [{"name": "none"}, {"name": "with a teacher", "main": True}],
        "environments": [
            {
                "versions": {"torch": "2.14.1"},
                "hardware": {"processor": "a processor", "threads": 1, "cores": 2},
                "code": {"commit": "0123456789abcdef", "modified": False},
                "data": {"somewhere_test": {"images": 7, "people": 3, "sha256": "ab" * 32}},
            }
        ],
        "protocol": {"recorded": "2026-01-01T00:00:00+00:00", "tuned": False},
        "teachers": {"teacher": {"metrics": {"mAP": 60.0}, "seed": 1}},
        "runs": [
            run("none", 1, 40.0),
            run("none", 2, 42.0),
            run("with a teacher", 1, 45.0),
            run("with a teacher", 2, 45.0),
        ],
        **more,
    }


@pytest.fixture
def checkout(tmp_path):
    write_study(tmp_path / FILE, study())
    (tmp_path / "README.md").write_text(DOCUMENT)
    return tmp_path


def results(checkout, *more):
    return main(["results", "--root", str(checkout), *more])


def test_documents_of_the_checkout_agree_with_their_files():
    maker = DocumentMaker(REPO)
    for document in maker.documents():
        filled = maker.fill(document)
        assert (filled.differences, filled.typed) == ([], []), document


def test_tables_and_numbers_by_hand(checkout):
    assert results(checkout) == 0
    text = (checkout / "README.md").read_text()
    assert "It gains <!-- value: " in text and " -->+4.0 ± 1.4<!-- /value -->." in text
    assert "| none | 43.0 ± 1.4 | - | - | - | 42.0, 44.0 |" in text
    # 5 and 3 points; each query differs alike, so that other queries would not change the mean.
    row = "| with a teacher | 47.0 ± 0.0 | +4.0 ± 1.4 | -8.7 to +16.7 | +4.0 to +4.0 | 47.0, 47.0 |"
    assert row in text
    for fact in (
        "    python projects/X/ablate.py --seeds 1 2\n",
        "`somewhere_test` (7 images, 3 people, sha256 abababababab)",
        "Seeds 1, 2.",
        "a processor, 1 of 2 cores",
        "torch 2.14.1",
        "Commit 0123456789ab.",
        "[study.json](results/study.json)",
    ):
        assert fact in text
    # The facts are folded, the table is not: a fold opens after its last row and is closed.
    assert text.index(row) < text.index("<details") < text.index("    python projects/X/ablate.py")
    assert text.count("<details markdown") == text.count("\n</details>\n\n<!-- /results -->") == 2
    assert "![mAP of every row, a dot for each seed](docs/images/rows.svg)" in text
    assert (checkout / "docs/images/rows.svg").read_text().count("somewhere_test") == 1


def test_they_are_made_again_to_the_byte(checkout):
    files = [checkout / "README.md", checkout / "docs/images/rows.svg"]
    assert results(checkout, "--check") == 1
    assert not files[1].exists()
    assert results(checkout) == 0
    before = [path.read_bytes() for path in files]
    assert results(checkout, "--check") == 0
    # From nothing but the text and the file.
    files[0].write_text(DOCUMENT)
    files[1].unlink()
    assert results(checkout) == 0
    assert [path.read_bytes() for path in files] == before


def test_a_changed_number_is_found(checkout, capsys):
    results(checkout)
    write_study(checkout / FILE, study(runs=[run("none", 1, 41.0), *study()["runs"][1:]]))
    capsys.readouterr()
    assert results(checkout, "--check") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "results: README.md:3: does not agree with results/study.json: run kd-search results "
        "--write",
        "results: README.md: the picture docs/images/rows.svg is not that of its file: run "
        "kd-search results --write",
    ]


def test_an_edited_number_is_found_in_file_document_and_picture(checkout, capsys):
    results(checkout)
    path = checkout / FILE
    whole = path.read_text()
    path.write_text(whole.replace("42.0", "43.0", 1))
    assert results(checkout, "--check") == 2
    assert "results/study.json" in capsys.readouterr().err
    path.write_text(whole)
    document = checkout / "README.md"
    text = document.read_text()
    document.write_text(text.replace("| 43.0 ±", "| 43.1 ±"))
    assert results(checkout, "--check") == 1
    document.write_text(text)
    picture = checkout / "docs/images/rows.svg"
    picture.write_text(picture.read_text().replace("somewhere_test", "elsewhere_test"))
    assert results(checkout, "--check") == 1


def test_a_picture_of_another_matplotlib_counts_by_its_numbers(checkout):
    results(checkout)
    picture = checkout / "docs/images/rows.svg"
    other = picture.read_text().replace("Matplotlib v", "Matplotlib v0.").replace("<g", "<g ")
    picture.write_text(other)
    assert results(checkout, "--check") == 0
    write_study(checkout / FILE, study(runs=[run("none", 1, 41.0), *study()["runs"][1:]]))
    assert results(checkout) == 0
    assert picture.read_text() != other


def test_a_table_of_results_is_made_from_a_file(checkout, capsys):
    document = checkout / "README.md"
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    document.write_text(
        f"# Keys\n\n{table}\n## Measured here\n\n### Part\n\n{table}\n# Keys\n\n{table}"
    )
    assert results(checkout, "--check") == 1
    assert "README.md:11: the table is not made" in capsys.readouterr().err


@pytest.mark.parametrize(
    "marker, found",
    [
        (f"<!-- results: {FILE} table rows=nobody -->\n<!-- /results -->", "'nobody'"),
        (f"<!-- results: {FILE} table metrics=AP -->\n<!-- /results -->", "metrics 'AP'"),
        (f"<!-- results: {FILE} table colour=red -->\n<!-- /results -->", "colour=red"),
        (f"<!-- results: {FILE} -->\n<!-- /results -->", "table"),
        (f"<!-- results: {FILE} figure=a.png -->\n<!-- /results -->", "figure"),
        (f"<!-- results: {FILE} table -->\n", "not closed"),
        ("<!-- results: no.json table -->\n<!-- /results -->", "no.json"),
        (f"<!-- value: {FILE} none mAP gain --><!-- /value -->", "gain"),
        (f"<!-- value: {FILE} none mAP seed=9 --><!-- /value -->", "seed '9'"),
    ],
)
def test_a_wrong_marker_is_one_line(checkout, capsys, marker, found):
    (checkout / "README.md").write_text(marker)
    assert results(checkout) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "README.md" in line and found in line
    assert (checkout / "README.md").read_text() == marker


@pytest.mark.parametrize(
    "change, place",
    [
        ({"format": 2}, "format 2"),
        ({"runs": [{"row": "else", "seed": 1, "metrics": {}}]}, "'else'"),
        ({"runs": [run("none", 1, 1.0), run("none", 1, 2.0)]}, "second"),
        ({"runs": [run("none", 1, 1.0, environment=7)]}, "environment 7"),
        ({"runs": [run("none", 1, 1.0, per_query={"mAP": {"queries": "", "ap": "AAA"}})]}, "mAP"),
        ({"runs": [run("none", 1, 1.0, started="2025-12-31T00:00:00+00:00")]}, "runs[0] started"),
        ({"dataset": 3}, "dataset"),
    ],
)
def test_a_wrong_results_file_is_one_line(tmp_path, change, place):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(study(**change)))
    with pytest.raises(ValueError) as error:
        read_study(path)
    message = str(error.value)
    assert str(path) in message and place in message and "\n" not in message


def test_half_a_number_in_a_list_of_queries_is_refused(tmp_path):
    odd = {"queries": "", "ap": base64.b64encode(np.zeros(3, np.uint8).tobytes()).decode()}
    with pytest.raises(ValueError, match="per_query"):
        write_study(tmp_path / "x.json", study(runs=[run("none", 1, 1.0, per_query={"mAP": odd})]))
    assert not (tmp_path / "x.json").exists()


def test_markers_in_examples_are_left_alone(checkout):
    text = f"```\n<!-- results: FILE table -->\n<!-- /results -->\n```\n{DOCUMENT}"
    (checkout / "README.md").write_text(text)
    assert results(checkout) == 0
    assert (checkout / "README.md").read_text().startswith(text[:60])


@pytest.mark.parametrize("before", ["", "  ", "- ", "> "])
def test_a_number_at_the_start_of_a_line_is_refused(checkout, before):
    marker = f"<!-- value: {FILE} none mAP --><!-- /value -->"
    document = checkout / "README.md"
    document.write_text(f"It has\n{before}{marker} points.\n")
    with pytest.raises(ValueError, match=r"README.md:2: the marker starts a line"):
        DocumentMaker(checkout).fill(document)
    document.write_text(f"It\n{before}has {marker} points.\n")
    assert DocumentMaker(checkout).fill(document).text.count("has <!-- value") == 1


def curve(checkout, x):
    line = f"results/a.json;results/b.json curve=docs/images/c.svg row='with a teacher' x={x}"
    return f"<!-- results: {line} -->\n<!-- /results -->\n"


def test_a_curve_of_several_studies(checkout):
    for name, iterations, gain in (("a", 200, 1.0), ("b", 100, 3.0)):
        size = {"iterations": iterations, "params": 7000 * iterations}
        runs = [run("none", seed, 40.0, **size) for seed in (1, 2)]
        runs += [run("with a teacher", seed, 40.0 + gain + seed, **size) for seed in (1, 2)]
        write_study(checkout / f"results/{name}.json", study(runs=runs))
    document = checkout / "README.md"
    maker = DocumentMaker(checkout)
    document.write_text(curve(checkout, "iterations"))
    write_filled(document, maker.fill(document))
    text = document.read_text()
    assert "mAP of with a teacher above none over training iterations" in text
    assert "[a.json](results/a.json)" in text and "[b.json](results/b.json)" in text
    assert results(checkout, "--check") == 0
    document.write_text(curve(checkout, "params"))
    (picture,) = maker.fill(document).pictures.values()
    # 0.7 and 1.4 millions.
    assert b">millions of parameters<" in picture and b">1.4<" in picture
    assert b">1e6<" not in picture
    document.write_text(curve(checkout, "MODEL.RESNETS.WIDTH"))
    assert results(checkout) == 0
    document.write_text(curve(checkout, "people"))
    assert results(checkout) == 2


def test_documents_of_other_folders_find_files_and_pictures(checkout):
    folder = checkout / "projects" / "X"
    folder.mkdir(parents=True)
    shutil.move(checkout / "README.md", folder / "README.md")
    assert results(checkout) == 0
    text = (folder / "README.md").read_text()
    assert "(../../docs/images/rows.svg)" in text and "(../../results/study.json)" in text
    assert Path(checkout / "docs/images/rows.svg").is_file()


def test_share_of_the_gap_to_the_teacher_by_hand(checkout):
    # 5 and 3 points more than 42 and 44, which are 17 below the teacher on average.
    row = f'{FILE} "with a teacher" mAP closed'
    (checkout / "README.md").write_text(f"It closes <!-- value: {row} --><!-- /value -->.\n")
    assert results(checkout) == 0
    assert "-->24 %<!--" in (checkout / "README.md").read_text()
    # Of its own seeds only, where the base has more.
    write_study(checkout / FILE, study(runs=[*study()["runs"][:3], run("none", 3, 10.0)]))
    assert results(checkout) == 0
    assert "-->28 %<!--" in (checkout / "README.md").read_text()


@pytest.mark.parametrize("teachers", [{}, {"teacher": {"metrics": {"mAP": 30.0}, "seed": 1}}])
def test_without_a_better_teacher_there_is_no_gap(checkout, teachers, capsys):
    write_study(checkout / FILE, study(teachers=teachers))
    row = f'{FILE} "with a teacher" mAP closed'
    (checkout / "README.md").write_text(f"<!-- value: {row} --><!-- /value -->\n")
    assert results(checkout) == 2
    assert FILE in capsys.readouterr().err


def test_settings_that_were_compared(checkout, capsys):
    candidates = [
        {"row": row, "overrides": {"SOLVER.BASE_LR": rate}, "scores": {"1": score}, "chosen": best}
        for row, rate, score, best in (
            ("none", 0.1, 40.04, False),
            ("none", 0.2, 41.0, True),
            ("with a teacher", 0.1, 45.0, True),
            ("with a teacher", 0.2, 44.0, False),
        )
    ]
    validation = {"of": "somewhere_train", "people": 5, "images": 8, "queries": 9}
    protocol = {"recorded": "2026", "tuned": True, "metric": "mAP", "validation": validation}
    write_study(checkout / FILE, study(protocol={**protocol, "candidates": candidates}))
    (checkout / "README.md").write_text(f"<!-- results: {FILE} choices -->\n<!-- /results -->\n")
    assert results(checkout) == 0
    text = (checkout / "README.md").read_text()
    assert "| none | SOLVER.BASE_LR 0.1 | 40.0 |  |\n" in text
    assert "| with a teacher | SOLVER.BASE_LR 0.1 | 45.0 | yes |\n" in text
    assert "5 people with 8 images and 9 queries split off `somewhere_train`" in text
    write_study(checkout / FILE, study())
    assert results(checkout) == 2
    assert "--candidates" in capsys.readouterr().err
