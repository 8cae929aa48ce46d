"""IDTableFile: round trip, and the refusal of files that do not fit."""

import pytest
import torch

from kd_search.distillation.methods.id_table import IDTableFile, TableMismatchError


def table(num_ids=3, dim=4):
    return IDTableFile(
        rows=torch.eye(num_ids, dim),
        counts=torch.tensor([5] * num_ids),
        unlabelled=torch.zeros(2, dim),
        person_ids=["a", "b", 7][:num_ids],
        source="mean",
        dataset="some_train",
        teacher_sha256="00",
        teacher_config="MODEL: {}",
    )


def test_round_trip_keeps_everything(tmp_path):
    path = tmp_path / "folder" / "table.pth"
    written = table()
    written.save(path)
    read = IDTableFile.load(path)
    for name in ("rows", "counts", "unlabelled"):
        assert torch.equal(getattr(read, name), getattr(written, name))
    for name in ("person_ids", "source", "dataset", "teacher_sha256", "teacher_config"):
        assert getattr(read, name) == getattr(written, name)
    assert [p.name for p in path.parent.iterdir()] == ["table.pth"]


def test_what_differs_is_said():
    file = table()
    file.check_fits("t.pth", embedding_dim=4, person_ids=["a", "b", 7])
    with pytest.raises(TableMismatchError, match="t.pth.* 4.*EMBEDDING_DIM 8"):
        file.check_fits("t.pth", embedding_dim=8)
    with pytest.raises(TableMismatchError, match="t.pth.* 3 .* 5"):
        file.check_fits("t.pth", embedding_dim=4, num_ids=5)
    with pytest.raises(TableMismatchError, match="t.pth.*row 1.*'b'.*'c'"):
        file.check_fits("t.pth", embedding_dim=4, person_ids=["a", "c", 7])


def test_truncated_and_foreign_files_are_refused_by_name(tmp_path):
    whole = tmp_path / "whole.pth"
    table().save(whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.pth"):
        IDTableFile.load(cut)
    flipped = tmp_path / "flipped.pth"
    content = bytearray(whole.read_bytes())
    place = content.index(table().rows[0].numpy().tobytes())
    content[place] ^= 1
    flipped.write_bytes(content)
    with pytest.raises(ValueError, match="flipped.pth.*checksum"):
        IDTableFile.load(flipped)
    foreign = tmp_path / "foreign.pth"
    torch.save({"model": {}}, foreign)
    with pytest.raises(ValueError, match="foreign.pth.*kd-search table"):
        IDTableFile.load(foreign)
    with pytest.raises(FileNotFoundError, match="kd-search table"):
        IDTableFile.load(tmp_path / "absent.pth")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_nothing_in_a_file_is_executed(tmp_path):
    marker = tmp_path / "executed"
    hostile = tmp_path / "hostile.pth"
    torch.save({"format": "kd_search.id_table", "rows": Payload(marker)}, hostile)
    with pytest.raises(ValueError, match="hostile.pth"):
        IDTableFile.load(hostile)
    assert not marker.exists()
