"""python -m kd_search.runtime, and that it needs onnxruntime, NumPy and Pillow alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import pytest
from trained import exported_network

from kd_search.runtime import manifest_path
from kd_search.runtime.__main__ import main

REPO = Path(__file__).resolve().parents[2]


def test_arrays_of_a_folder(files, tmp_path, capsys):
    names = ["odd.png", "nobody.png", "gray.jpg"]
    paths = [files[name].file for name in names]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({paths[2]: [[1, 2, 30, 40], [5, 5, 50, 90]]}))
    output = tmp_path / "out" / "people.npz"
    model = str(exported_network())
    assert main([model, *paths, "--boxes", str(boxes), "--output", str(output)]) == 0
    with np.load(output) as arrays:
        assert arrays["files"].tolist() == paths
        for index, name in enumerate(names):
            here = arrays["picture"] == index
            assert here.sum() == len(files[name].people.scores)
        assert arrays["query_picture"].tolist() == [2, 2]
        assert arrays["query_embeddings"].shape == (2, arrays["embeddings"].shape[1])
    assert f"people in 3 pictures: {output}" in capsys.readouterr().out


def test_bad_pictures_are_named_and_left_out(files, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    output = tmp_path / "people.npz"
    pictures = [str(tmp_path / "bad.png"), files["odd.png"].file]
    assert main([str(exported_network()), *pictures, "--output", str(output)]) == 1
    assert "bad.png" in capsys.readouterr().err
    with np.load(output) as arrays:
        assert set(arrays["picture"].tolist()) == {1}


@pytest.mark.parametrize(
    "text", ["[1]", '{"gone.png": []}', '{"%s": [[1, 2]]}', '{"%s": 3}', '{"%s": [["a"]]}', "{"]
)
def test_wrong_boxes_are_one_line(files, tmp_path, capsys, text):
    picture, boxes = files["odd.png"].file, tmp_path / "boxes.json"
    boxes.write_text(text.replace("%s", picture))
    output = tmp_path / "people.npz"
    arguments = [str(exported_network()), picture, "--boxes", str(boxes), "--output", str(output)]
    assert main(arguments) == 2
    assert "boxes.json" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not output.exists()


def linked(folder: Path, modules) -> None:
    """Put installed packages into a folder, with the shared libraries beside them."""
    for module in modules:
        place = Path(module.__file__).parent
        libraries = {"numpy": "numpy.libs", "PIL": "pillow.libs"}.get(place.name, "")
        for source in (place, place.parent / libraries):
            if source.exists() and source != place.parent:
                os.symlink(source, folder / source.name)


def test_nothing_but_onnxruntime_numpy_and_pillow_is_needed(files, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    linked(site, (onnxruntime, np, PIL))
    package = site / "kd_search"
    package.mkdir()
    for name in ("__init__.py", "runtime", "utils"):
        os.symlink(REPO / "kd_search" / name, package / name)
    program = f"""
import sys
from kd_search.runtime import PersonSearcher
searcher = PersonSearcher.load({str(exported_network())!r}, threads=1)
people = searcher.detect({files["odd.png"].file!r})
queries = searcher.embed({files["odd.png"].file!r}, [[0, 0, 30, 60]])
print(len(people.scores), len(queries))
print(sorted(n for n in sys.modules if n in ("torch", "detectron2", "cv2", "scipy", "pydantic")))
"""
    # -S: without the packages of this environment; -E: without the variables of this process.
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"]},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{len(files['odd.png'].people.scores)} 1", "[]"]


def test_the_documented_search(files, tmp_path, monkeypatch, capsys):
    # The other block is of OpenVINO, which the tests do not need.
    code, _ = re.findall(r"```python\n(.*?)```", (REPO / "docs/runtime.md").read_text(), re.S)
    shutil.copy(exported_network(), tmp_path / "student.onnx")
    shutil.copy(manifest_path(exported_network()), tmp_path / "student.onnx.json")
    shutil.copy(files["crowd.jpg"].file, tmp_path / "scene.jpg")
    shutil.copy(files["crowd.jpg"].file, tmp_path / "query.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    people = files["crowd.jpg"].people
    assert len(people.scores) == len(capsys.readouterr().out.splitlines()) > 0
