"""Exported files: metadata, refused content, and their use without Detectron2."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

import kd_search
from kd_search.export import exportable, load_exported, weights_sha256
from kd_search.export.exported_file import METADATA_NAME, decode, encode
from kd_search.export.torchscript import describe, export_torchscript

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def file(fpn, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "new folder" / "tiny.ts"
    export_torchscript(fpn.model, path, cfg=fpn.cfg, source_sha256="abc")
    return path


@pytest.fixture
def metadata(fpn, traced_fpn):
    return describe(traced_fpn, fpn.model, fpn.cfg)


def test_metadata_describe_the_network(file, fpn):
    metadata = load_exported(file).metadata
    assert metadata["input_format"] == "BGR"
    assert (metadata["min_size"], metadata["max_size"]) == (800, 1333)
    assert metadata["embedding_dim"] == 8
    assert metadata["score_threshold"] == fpn.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    assert metadata["nms_threshold"] == 0.4
    assert metadata["max_detections"] == 100
    assert metadata["search_score_threshold"] == 0.5
    assert metadata["device"] == "cpu"
    assert metadata["source_sha256"] == "abc"
    assert metadata["versions"]["torch"] == torch.__version__
    assert metadata["versions"]["torchvision"] == torchvision.__version__
    assert metadata["versions"]["kd_search"] == kd_search.__version__
    assert set(metadata["versions"]) == {"kd_search", "torch", "torchvision", "detectron2"}
    assert metadata["config"] == fpn.cfg.dump()


def test_weights_are_identified_before_and_after_export_alike(file, fpn):
    exported = load_exported(file)
    assert exported.metadata["weights_sha256"] == weights_sha256(exported.module)
    assert exported.metadata["weights_sha256"] == weights_sha256(exportable(fpn.model))
    changed = exportable(fpn.model)
    changed.model.roi_heads.reid.head.linear.bias[3] += 1e-6
    assert weights_sha256(changed) != exported.metadata["weights_sha256"]


def test_the_same_model_gives_the_same_bytes(traced_fpn, metadata):
    assert encode(traced_fpn, metadata) == encode(traced_fpn, metadata)


def test_only_the_finished_file_is_left(file):
    assert os.listdir(file.parent) == ["tiny.ts"]


def test_the_documented_search_runs_without_detectron2(file, fpn, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "docs/export.md").read_text(), re.S)
    (code,) = (block for block in blocks if "torch.jit.load" in block)
    (tmp_path / "student.ts").write_bytes(file.read_bytes())
    for name, image in (("query.jpg", fpn.images[0]), ("scene.jpg", fpn.images[4])):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name, quality=95)
    # Sizes small enough for a test; nothing but the metadata says so.
    extra = {METADATA_NAME: ""}
    module = torch.jit.load(str(file), _extra_files=extra)
    metadata = {**json.loads(extra[METADATA_NAME]), "min_size": 64, "max_size": 200}
    (tmp_path / "student.ts").write_bytes(encode(module, metadata))
    absent = """
        import sys, warnings
        warnings.simplefilter("ignore")
        for name in ("detectron2", "kd_search", "fvcore", "iopath"):
            sys.modules[name] = None  # importing it is an error
        import torch
        torch.set_num_threads(1)
    """
    program = textwrap.dedent(absent) + code + "\nprint(len(boxes), query.norm().item())\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *hits, last = done.stdout.splitlines()
    count, norm = last.split()
    assert int(count) == len(hits) > 0
    assert float(norm) == pytest.approx(1, abs=1e-5)
    similarities = [float(hit.split()[0]) for hit in hits]
    assert similarities == sorted(similarities, reverse=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.ts"):
        load_exported(tmp_path / "gone.ts")


@pytest.mark.parametrize("content", (b"", b"no archive", None), ids=("empty", "text", "truncated"))
def test_a_truncated_or_foreign_file_is_refused_in_one_line(file, tmp_path, content):
    path = tmp_path / "bad.ts"
    path.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ValueError, match=r"bad\.ts") as error:
        load_exported(path)
    assert "\n" not in str(error.value)


def test_another_torchscript_file_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "other.ts"))
    with pytest.raises(ValueError, match=r"other\.ts .*metadata"):
        load_exported(tmp_path / "other.ts")


def test_another_format_version_is_refused(traced_fpn, metadata):
    content = encode(traced_fpn, {**metadata, "version": 99})
    with pytest.raises(ValueError, match=r"new\.ts .* 99, .* 1"):
        decode(content, "new.ts")


def test_changed_weights_are_refused(traced_fpn, metadata):
    content = encode(traced_fpn, {**metadata, "weights_sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"x\.ts .*weights"):
        decode(content, "x.ts")


def test_a_file_of_another_device_is_refused(traced_fpn, metadata):
    content = encode(traced_fpn, {**metadata, "device": "cuda"})
    with pytest.raises(ValueError, match=r"x\.ts .*cuda, not cpu"):
        decode(content, "x.ts", "cpu")
