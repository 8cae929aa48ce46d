"""kd-search table on a tiny generated set: both sources, and refusal of foreign tables."""

import sys

import pytest
import torch
from tiny import REPO

from kd_search import pipeline
from kd_search.cli import table
from kd_search.data import get_id_map
from kd_search.distillation.methods.id_table import IDTableFile, TableMismatchError
from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.pipeline import build_table
from kd_search.synthetic import PRESETS, generate_dataset
from kd_search.utils.files import file_sha256
from tests import forked

TINY = (
    *("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.REID_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.REID_HEAD.EMBEDDING_DIM", 8),
)
TEACHER = str(REPO / "configs/generated/teacher_r18_fpn.yaml")
PLAIN = str(REPO / "configs/generated/student_r18w50_fpn.yaml")
STUDENT = str(REPO / "projects/PersonSearchKD/configs/generated/student_r18w50_fpn_id_table.yaml")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "data"
    generate_dataset(root, PRESETS["tiny"], seed=0, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_SEARCH_GENERATED", str(root))
        yield root


@pytest.fixture(scope="module")
def teacher(generated, tmp_path_factory):
    cfg = build_config(TEACHER, TINY)
    torch.manual_seed(0)
    model = PersonSearchTrainer.build_model(cfg)
    num_ids = model.id_table.num_ids
    rows = torch.nn.functional.normalize(torch.randn(num_ids, 8), dim=1)
    model.id_table.load_rows(rows)
    weights = tmp_path_factory.mktemp("teacher") / "model.pth"
    torch.save({"model": model.state_dict()}, weights)
    return cfg, model, weights


def test_mean_table_is_the_mean_of_the_teachers_embeddings(teacher):
    from kd_search.data import build_person_search_table_loader

    cfg, model, weights = teacher
    table = build_table(cfg, str(weights), "mean")
    ids = get_id_map(cfg.DATASETS.TRAIN)
    assert table.person_ids == ids.to_list()
    assert table.teacher_sha256 == file_sha256(weights)
    sums = torch.zeros(len(ids), 8, dtype=torch.float64)
    counts = torch.zeros(len(ids), dtype=torch.int64)
    model.eval()
    with torch.no_grad():
        for batch in build_person_search_table_loader(cfg, cfg.DATASETS.TRAIN):
            people = batch[0]["instances"]
            found = model.embed(batch, [people.gt_boxes.tensor]).double()
            for row, embedding in zip(people.gt_person_ids.tolist(), found):
                if row >= 0:
                    sums[row] += embedding
                    counts[row] += 1
    expected = torch.nn.functional.normalize(sums, dim=1).float()
    torch.testing.assert_close(table.rows, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(table.counts, counts) and (counts > 0).all()
    assert len(table.unlabelled) > 0


def test_oim_table_is_a_copy_of_the_teachers_own(teacher):
    cfg, model, weights = teacher
    table = build_table(cfg, str(weights), "oim")
    assert torch.equal(table.rows, model.id_table.rows)


def test_a_teacher_without_a_table_has_none_to_copy(teacher, tmp_path):
    cfg, model, _ = teacher
    state = {k: v for k, v in model.state_dict().items() if "id_table" not in k}
    torch.save({"model": state}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="--source mean"):
        build_table(cfg, str(tmp_path / "bare.pth"), "oim")


def test_a_student_takes_the_table_and_refuses_one_of_other_people(teacher, tmp_path):
    cfg, _, weights = teacher
    table = build_table(cfg, str(weights), "mean")
    path = tmp_path / "table.pth"
    table.save(path)
    overrides = (*TINY, "DISTILLATION.ID_TABLE.PATH", str(path))
    model = PersonSearchTrainer.build_model(build_config(STUDENT, overrides))
    assert torch.equal(model.terms["IDTableTerm"].table.rows, table.rows)
    table.person_ids = table.person_ids[::-1]
    table.save(path)
    with pytest.raises(TableMismatchError, match="table.pth.*row 0"):
        PersonSearchTrainer.build_model(build_config(STUDENT, overrides))


def test_a_student_starts_from_the_same_weights_with_the_table_and_without(teacher, tmp_path):
    cfg, _, weights = teacher
    build_table(cfg, str(weights), "mean").save(tmp_path / "table.pth")
    common = [*TINY, "OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", ()]
    plain = PersonSearchTrainer(build_config(PLAIN, common))
    path = ["DISTILLATION.ID_TABLE.PATH", str(tmp_path / "table.pth")]
    distilled = PersonSearchTrainer(build_config(STUDENT, [*common, *path]))
    first = {k: v for k, v in plain.model.state_dict().items() if "id_table" not in k}
    second = distilled.model.student.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_tool_says_what_is_wrong_in_one_line(generated, tmp_path):
    command = [sys.executable, str(REPO / "tools/build_id_table.py"), "--config-file", TEACHER]
    command += ["--weights", str(tmp_path / "absent.pth"), "--output", str(tmp_path / "t.pth")]
    done = forked.run(command)
    assert done.returncode == 2
    assert "absent.pth" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "t.pth").exists()


@pytest.mark.parametrize("place", ["file/t.pth", "/proc/self/t.pth", "folder"])
def test_the_tool_refuses_an_output_that_cannot_be_written_before_it_works(
    tmp_path, place, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(pipeline, "build_table", lambda *_: pytest.fail("it worked"))
    argv = ["--config-file", TEACHER, "--weights", "w.pth", "--output", str(tmp_path / place)]
    assert table.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("table: --output") and f"{place} cannot be written" in line


def test_a_table_file_names_its_source(teacher, tmp_path):
    cfg, _, weights = teacher
    build_table(cfg, str(weights), "mean").save(tmp_path / "t.pth")
    read = IDTableFile.load(tmp_path / "t.pth")
    assert read.source == "mean" and read.dataset == "kd_generated_train"
    assert "META_ARCHITECTURE: PersonSearchRCNN" in read.teacher_config
