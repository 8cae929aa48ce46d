"""Galleries need NumPy and Pillow alone, so that they run where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GALLERY = ROOT / "kd_search" / "gallery"
MODULES = sorted(
    ".".join(path.relative_to(GALLERY).with_suffix("").parts) for path in GALLERY.rglob("[a-z]*.py")
)

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "detectron2", "fvcore", "iopath",
                                      "cv2", "scipy", "matplotlib", "onnxruntime", "faiss",
                                      "psycopg"}:
            raise ModuleNotFoundError(f"not here: {name}", name=name)
sys.meta_path.insert(0, Refuse())
import importlib
for name in sys.argv[2:]:
    importlib.import_module(f"kd_search.gallery.{name}")
"""


def test_every_module_imports_without_torch():
    assert {"store", "search", "indexing", "postgres.reader"} < set(MODULES)
    run = [sys.executable, "-c", CODE, str(ROOT), *MODULES]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["torch", "faiss"])
def test_the_check_above_can_fail(module):
    code = CODE.replace("import importlib", f"import importlib, {module}")
    result = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert result.returncode == 1 and "not here" in result.stderr
