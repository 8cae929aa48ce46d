"""The server needs neither torch nor Detectron2, nor what the pages of reports need."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed")

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "detectron2", "fvcore", "iopath",
                                      "cv2", "scipy", "matplotlib"}:
            raise ModuleNotFoundError(f"not here: {name}", name=name)
sys.meta_path.insert(0, Refuse())
import kd_search.server.serving, kd_search.cli.serve
from tests.gallery.fake_searcher import FakeSearcher
from tests.server.inputs import *
import pathlib, tempfile
with tempfile.TemporaryDirectory() as folder:
    index(pathlib.Path(folder), FakeSearcher())
    client = Client(pathlib.Path(folder), FakeSearcher())
    found = client.search(client.wanted(1))
    search = {"query": [{"id": found["results"][0]["id"]}]}
    assert client.ask("POST", "/api/export?format=html", search).status == 200
"""


def test_a_search_without_torch():
    run = [sys.executable, "-c", CODE, str(ROOT)]
    result = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_the_check_above_can_fail():
    code = CODE.replace("import pathlib", "import pathlib, matplotlib")
    run = [sys.executable, "-c", code, str(ROOT)]
    result = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1 and "not here" in result.stderr
