"""Damaged exported networks, ID tables and detections: one line, or the content as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.evaluation import load_detections
from kd_search.export import load_exported, weights_sha256
from kd_search.export.exported_file import encode
from tests.hostile import changes, harms, lengths, refused, try_examples

OLD = Path(__file__).resolve().parents[1] / "old_files"
#: What no field of a table or checkpoint may be.
TENSORS = (
    torch.eye(3).to_sparse(),
    torch.ones(3, 4, dtype=torch.complex64),
    torch.ones(2),
    torch.full((3, 4), float("nan")),
    torch.ones(3, 4, dtype=torch.int32),
)


@pytest.fixture(scope="module")
def exported():
    """A sealed file, small enough to be harmed everywhere."""
    old = load_exported(OLD / "exported.ts")
    metadata = {k: v for k, v in old.metadata.items() if k not in ("format", "version")}
    return encode(old.module, metadata)


@lengths(300, 4000)
def test_no_harmed_exported_file_loads(tmp_path, exported, examples):
    path = tmp_path / "network.ts"

    def check(content):
        path.write_bytes(content)
        assert refused(lambda: load_exported(path), path)

    try_examples(examples, check, harms(exported))


def test_a_whole_exported_file_loads(tmp_path, exported):
    path = tmp_path / "network.ts"
    path.write_bytes(exported)
    found = load_exported(path)
    assert found.metadata["sealed"] is True
    assert weights_sha256(found.module) == found.metadata["weights_sha256"]


def same_table(one, other) -> bool:
    tensors = all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("rows", "counts", "unlabelled")
    )
    names = ("person_ids", "source", "dataset", "teacher_sha256", "teacher_config")
    return tensors and all(getattr(one, name) == getattr(other, name) for name in names)


@lengths(200, 3000)
def test_a_harmed_table_is_refused_or_as_it_was(tmp_path, examples):
    path, whole = tmp_path / "table.pth", IDTableFile.load(OLD / "id_table.pth")

    def check(content):
        path.write_bytes(content)
        if not refused(lambda: IDTableFile.load(path), path):
            assert same_table(IDTableFile.load(path), whole)

    try_examples(examples, check, harms((OLD / "id_table.pth").read_bytes()))


@lengths(150, 2000)
def test_a_table_with_a_wrong_field_is_refused(tmp_path, examples):
    path = tmp_path / "table.pth"
    content = torch.load(OLD / "id_table.pth", weights_only=True)

    def check(changed):
        torch.save(changed, path)
        if not refused(lambda: IDTableFile.load(path), path):
            table = IDTableFile.load(path)
            assert table.rows.dtype == torch.float32 and table.rows.isfinite().all()
            assert len(table.rows) == len(table.counts) == len(table.person_ids)
            assert table.rows.shape[1] == table.unlabelled.shape[1]
            assert isinstance(table.dataset, str) and table.source in ("mean", "oim")

    try_examples(examples, check, changes(content, TENSORS))


@lengths(150, 2000)
def test_harmed_detections_are_refused_or_as_they_were(tmp_path, examples):
    file = OLD / "person_search_detections.npz"
    path, (whole, metadata) = tmp_path / file.name, load_detections(file)

    def check(content):
        path.write_bytes(content)
        if not refused(lambda: load_detections(path), path):
            found, said = load_detections(path)
            assert said == metadata
            for name, value in vars(whole).items():
                np.testing.assert_array_equal(getattr(found, name), value)

    try_examples(examples, check, harms(file.read_bytes()))


@lengths(60, 500)
def test_a_file_of_anything_is_refused(tmp_path, examples):
    readers = {"a.ts": load_exported, "b.pth": IDTableFile.load, "c.npz": load_detections}

    def check(content):
        for name, read in readers.items():
            (tmp_path / name).write_bytes(content)
            assert refused(lambda r=read, n=name: r(tmp_path / n), name)

    try_examples(examples, check, st.binary(max_size=200))
