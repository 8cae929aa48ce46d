"""Every command of the documentation that is marked as runnable runs, on a tiny data set.

The line ``<!-- runnable -->`` marks the block after it, fenced or indented: commands of kd-search,
or a fenced block of Python. What a page has runs in its order and in one folder, in which the
generated set is what users have: ``train.json``, ``test.json``, ``query_info.txt``, ``photos/``,
``street.jpg`` and ``scene.jpg``. Options that make a command small are added to it; otherwise it
runs as it is written.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from unittest import mock

import nbformat
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from nbclient import NotebookClient
from tiny import REPO
from tiny_demo import tiny_demo

from kd_search.cli import main
from kd_search.synthetic import PRESETS, generate_dataset

PAGES = ("README.md", "docs", "projects")
NOTEBOOK = REPO / "docs/notebooks/search_a_folder.ipynb"
_MARK = "<!-- runnable -->"
_BLOCK = re.compile(
    rf"^{re.escape(_MARK)}\n\n?(?:```(?P<language>\w*)\n(?P<fenced>.*?)```|"
    r"(?P<indented>(?: {4}[^\n]*\n|\n)+))",
    re.MULTILINE | re.DOTALL,
)

#: A network and a training of seconds.
TINY = [
    *("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()"),
    *("MODEL.RESNETS.WIDTH_MULTIPLIER", "0.25", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.REID_HEAD.CONV_DIM", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
]
#: What is added to a command of that name.
ADDED = {
    "demo": ["--preset", "tiny"],
    "generate": ["--preset", "tiny"],
    "distill": TINY,
    "train": TINY,
}


def pages():
    """{path: text} of the pages that have runnable commands."""
    paths = [REPO / part for part in PAGES]
    paths = [found for path in paths for found in (path.rglob("*.md") if path.is_dir() else [path])]
    texts = {path.relative_to(REPO).as_posix(): path.read_text() for path in sorted(paths)}
    return {name: text for name, text in texts.items() if _MARK in text}


def commands(text: str) -> list[list[str]]:
    """The commands of the runnable blocks of a page.

    Raises:
        ValueError: a mark has no block after it, or a block has something else than commands.
    """
    blocks = list(_BLOCK.finditer(text))
    if len(blocks) != text.count(_MARK):
        raise ValueError("a runnable mark has no block after it")
    found: list[list[str]] = []
    for block in blocks:
        if block["language"] == "python":
            found.append(["python", "-c", block["fenced"]])
            continue
        lines = (block["fenced"] or block["indented"]).replace("\\\n", " ").splitlines()
        for words in filter(None, (shlex.split(line, comments=True) for line in lines)):
            if words[0] != "kd-search":
                raise ValueError(f"{shlex.join(words)}: only kd-search and Python are runnable")
            found.append(words)
    return found


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """``get(page) -> Path``: a folder in which the commands of the page have run."""

    @cache
    def get(page):
        folder = tmp_path_factory.mktemp("page")
        write_own_data(folder)
        known, before = set(DatasetCatalog.list()), os.getcwd()
        try:
            with mock.patch.dict(os.environ, environment()):
                os.chdir(folder)
                for words in commands(pages()[page]):
                    run(words, folder)
        finally:
            os.chdir(before)
            for name in set(DatasetCatalog.list()) - known:
                DatasetCatalog.remove(name)
                MetadataCatalog.pop(name)
        return folder

    return get


def run(words, folder):
    """Run a command in this process, which spares its imports, and Python in one of its own."""
    words = [*words, *ADDED.get(words[1], [])]
    if words[1] == "demo":
        # As one that goes on: tests/test_demo.py tests the whole.
        shutil.copytree(tiny_demo()[0], folder / "output/demo")
    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        status, said = done.returncode, f"{done.stdout}\n{done.stderr}"
    else:
        status, said = main(words[1:]), ""
    assert status == 0, f"{shlex.join(words)}\n{said}"
    if "--output" in words:
        output = folder / words[words.index("--output") + 1]
        assert output.exists(), f"{shlex.join(words)} did not write {output.name}"


def environment():
    return {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def write_own_data(folder):
    generate_dataset(folder / "set", PRESETS["tiny"])
    for name in ("train.json", "test.json", "query_info.txt"):
        shutil.move(folder / "set" / name, folder / name)
    (folder / "photos").mkdir()
    for picture in (folder / "set").rglob("*.jpg"):
        shutil.move(picture, folder / "photos" / picture.name)
    shutil.rmtree(folder / "set")
    for name, picture in zip(("street.jpg", "scene.jpg"), sorted((folder / "photos").iterdir())):
        shutil.copy(picture, folder / name)


@pytest.mark.e2e
@pytest.mark.parametrize("page", pages())
def test_commands_of(page, folder_of):
    assert any(folder_of(page).iterdir())


@pytest.mark.e2e
def test_the_notebook_runs_where_the_demo_was_run(folder_of, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    folder = folder_of("README.md")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    test_set = json.loads((folder / "output/demo/data/test.json").read_text())
    text = "".join(output.get("text", "") for output in outputs)
    assert f"{len(test_set['images']) - 1} pictures searched" in text


def test_readme_and_getting_started_have_runnable_commands():
    assert {"README.md", "docs/getting_started.md"} <= set(pages())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{_MARK}\n```console\nkd-search a b  # c\n```\n", [["a", "b"]]),
        (
            f"{_MARK}\n\n    kd-search a \\\n        --x 1\n    kd-search c\n",
            [["a", "--x", "1"], ["c"]],
        ),
        (
            f"{_MARK}\n    kd-search a\n\n    kd-search b\n\ntext\n\n    kd-search c\n",
            [["a"], ["b"]],
        ),
    ],
)
def test_blocks_are_found(text, found):
    assert commands(text) == [["kd-search", *words] for words in found]


def test_python_is_run_as_a_block():
    code = "import x\n\nx.y()\n"
    assert commands(f"{_MARK}\n```python\n{code}```\n") == [["python", "-c", code]]


@pytest.mark.parametrize("text", [f"{_MARK}\ntext\n", f"{_MARK}\n    make demo\n"])
def test_a_mark_without_commands_is_refused(text):
    with pytest.raises(ValueError, match="runnable"):
        commands(text)
