"""An exported network to damage, and pictures for it."""

import json
import shutil
from types import SimpleNamespace

import pytest
from trained import exported_network, trained_network

from kd_search.export.gate import run_training_stack
from kd_search.export.gate_pictures import write_gate_pictures
from kd_search.runtime import PersonSearcher, manifest_path


@pytest.fixture(scope="session")
def searcher():
    return PersonSearcher.load(exported_network(), threads=1)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Gate pictures with the results of the training stack, by name."""
    cfg, model = trained_network("fpn")
    pictures = write_gate_pictures(tmp_path_factory.mktemp("pictures"), 96, seed=5)
    results = run_training_stack(model, cfg, pictures)
    return {
        p.file.rsplit("/", 1)[1]: SimpleNamespace(**p._asdict(), people=r)
        for p, r in zip(pictures, results)
    }


@pytest.fixture
def copied(tmp_path):
    """Path of a copy of the exported network, with its manifest."""
    path = exported_network()
    shutil.copy(path, tmp_path / "model.onnx")
    shutil.copy(manifest_path(path), tmp_path / "model.onnx.json")
    return tmp_path / "model.onnx"


@pytest.fixture
def change(copied):
    """``change(key=value, ...)`` the manifest of the copy; without its checksum."""

    def write(**values):
        path = manifest_path(copied)
        manifest = json.loads(path.read_text())
        manifest.pop("sha256", None)
        path.write_text(json.dumps({**manifest, **values}))

    return write
