"""Rows of a distilled ID table after a refresh, of the teacher or blended with the student."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from tiny import tiny_detector_cfg
from tiny_distiller import save_teacher

from kd_search.data import build_person_search_table_loader, build_person_search_views_loader
from kd_search.engine import PersonSearchTrainer
from tests.distillation.methods.global_knowledge.prototype_setting import register
from tests.distillation.methods.id_table.refresh_setting import (
    AVERAGE,
    BLEND,
    KEY,
    KIND,
    refresh_cfg,
    term_of,
    trained,
    write_refresh_setting,
)
from tests.engine.toy import start_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("refresh")
    write_refresh_setting(path)
    return path


def means_of(network, batches, num_ids, flip=False):
    """normalize(mean of unit embeddings) of each identity, box by box, in float64; NaN for none.

    Of several networks, each embeds its part of the images.
    """
    found = [[] for _ in range(num_ids)]
    networks = network if isinstance(network, list) else [network]
    batches = list(batches)
    for number, (x,) in enumerate(batches):
        network = networks[number * len(networks) // len(batches)].eval()
        image = x["image"].flip(0) if flip else x["image"]
        boxes = [x["instances"].gt_boxes.tensor]
        with torch.no_grad():
            embeddings = network.embed([{**x, "image": image}], boxes).double().numpy()
        for person, row in zip(x["instances"].gt_person_ids.tolist(), embeddings):
            if person >= 0:
                found[person].append(row / np.linalg.norm(row))
    means = np.array([np.mean(rows, axis=0) if rows else np.full(8, np.nan) for rows in found])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def views(cfg, iteration):
    """What the student's augmentation shows at the end of an iteration."""
    return list(
        build_person_search_views_loader(cfg, cfg.DATASETS.TRAIN, seed=cfg.SEED, draw=iteration)
    )


def cosines(rows, others):
    return (rows.double().numpy() * others).sum(axis=1)


# --------------------------------------------------------------------------------------- the source


@pytest.mark.parametrize("mode", ["frozen", "momentum"])
def test_rows_from_the_teacher_are_its_means_and_not_the_students(folder, tmp_path, mode):
    options = ("SOLVER.MAX_ITER", 4, KEY + "MODE", mode)
    trainer = trained(folder, tmp_path, *options)
    rows, cfg, model = term_of(trainer).table.rows, trainer.cfg, trainer.model
    expected = means_of(model.teacher.model, views(cfg, 3), len(rows))
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-5)
    plain = list(build_person_search_table_loader(cfg, cfg.DATASETS.TRAIN))
    assert cosines(rows, means_of(model.teacher.model, plain, len(rows))).min() > 0.9
    assert cosines(rows, means_of(model.student, plain, len(rows))).max() < 0.7
    assert trainer.storage.latest()["id_table/IDTableTerm/moved_mean"][0] > 0
    # The teacher runs between steps alone.
    assert not model._runs_teacher
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert torch.equal(saved["terms"]["IDTableTerm.table.rows"], rows)
    assert not any("teacher" in name for part in ("model", "terms") for name in saved[part])


def test_the_teacher_sees_its_own_channel_order(folder, tmp_path):
    overrides = ("DISTILLATION.TEACHER.OPTS", ["INPUT.FORMAT", "RGB"], "SOLVER.MAX_ITER", 2)
    trainer = trained(folder, tmp_path, *overrides)
    rows = term_of(trainer).table.rows
    teacher = trainer.model.teacher.model
    expected = means_of(teacher, views(trainer.cfg, 1), len(rows), flip=True)
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-5)
    assert cosines(rows, means_of(teacher, views(trainer.cfg, 1), len(rows))).min() < 0.999


def test_rows_are_averaged_over_the_views_of_all_refreshes(folder, tmp_path):
    trainer = trained(folder, tmp_path, *AVERAGE)
    rows = term_of(trainer).table.rows
    parts = [
        np.nan_to_num(means_of(trainer.model.teacher.model, views(trainer.cfg, i), len(rows)))
        for i in (1, 3, 5)
    ]
    assert np.abs(parts[0] - parts[1]).max() > 0.01
    total = np.sum(parts, axis=0)
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-5)


def test_blended_rows_have_the_stated_share_of_the_student(folder, tmp_path):
    share = 0.25
    file = write_refresh_setting(folder)
    options = (KEY + "REFRESH_STUDENT_SHARE", share, "DISTILLATION.TEACHER.CONFIG_FILE", "")
    trainer = trained(folder, tmp_path, *BLEND, *options)
    assert trainer.model.teacher is None
    rows = term_of(trainer).table.rows
    plain = build_person_search_table_loader(trainer.cfg, trainer.cfg.DATASETS.TRAIN)
    student = means_of(trainer.model.student, plain, len(rows))
    # After three refreshes the teacher's share is what it was after the first.
    mixed = (1 - share) * file.rows.double().numpy() + share * student
    expected = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    np.testing.assert_allclose(rows.numpy(), expected, atol=1e-5)


def test_a_row_that_the_teacher_lacks_does_not_become_the_students(folder, tmp_path):
    file = write_refresh_setting(folder)
    file.rows[2] = 0
    file.save(tmp_path / "holed.pth")
    options = ("SOLVER.MAX_ITER", 2, KEY + "MODE", "ema", KEY + "EMA_MOMENTUM", 1.0)
    path = (KEY + "PATH", str(tmp_path / "holed.pth"))
    trainer = trained(folder, tmp_path, *BLEND, *options, *path)
    rows = term_of(trainer).table.rows
    assert not rows[2].any() and rows[[0, 1, 3, 4]].any(dim=1).all()


# -------------------------------------------------------------------------------------- the views


def test_views_are_the_same_for_any_number_of_ranks_and_workers(folder, monkeypatch):
    register(folder, KIND)
    cfg = refresh_cfg(folder)
    alone = views(cfg, 7)
    cfg.DATALOADER.NUM_WORKERS = 2
    shared = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        shared += views(cfg, 7)
    monkeypatch.undo()
    assert len(shared) == len(alone) == 4
    for (one,), (other,) in zip(alone, shared):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
    cfg.DATALOADER.NUM_WORKERS = 0
    # Another draw shows something else, of other sizes too.
    sizes = [[x["image"].float().sum() for (x,) in views(cfg, i)] for i in (7, 8)]
    assert sizes[0] != sizes[1]


# ------------------------------------------------------------------------------ resuming and ranks


class InterruptedTrainer(PersonSearchTrainer):
    """Breaks off in iteration 4, after the refresh of iteration 3 and its checkpoint."""

    def run_step(self):
        if self.iter == 4:
            raise KeyError("interrupted")
        super().run_step()


@pytest.mark.parametrize("overrides", [AVERAGE, BLEND])
def test_a_resumed_training_ends_on_the_same_bits(folder, tmp_path, overrides):
    whole = trained(folder, tmp_path / "whole", *overrides)
    with pytest.raises(KeyError, match="interrupted"):
        trained(folder, tmp_path / "parts", *overrides, trainer_class=InterruptedTrainer)
    parts = trained(folder, tmp_path / "parts", *overrides, resume=True)
    assert parts.start_iter == 4
    for one, other in ((whole.model.terms, parts.model.terms), (whole.model, parts.model)):
        one, other = one.state_dict(), other.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def ranks(folder):
    write_refresh_setting(folder)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start_script(
        Path(__file__).with_name("refresh_setting.py"), {}, str(folder), launcher=launcher
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return [torch.load(folder / f"rank{r}.pth", weights_only=True) for r in (0, 1)]


def test_ranks_share_the_work_and_end_with_one_table(folder, ranks, tmp_path):
    for name in ("teacher", "blend"):
        assert ranks[0][name].keys() == ranks[1][name].keys()
        assert all(torch.equal(ranks[0][name][k], ranks[1][name][k]) for k in ranks[0][name])
    # The teacher does not train: its means do not depend on the number of ranks.
    alone = term_of(trained(folder, tmp_path, "SOLVER.MAX_ITER", 2, *AVERAGE)).state_dict()
    assert all(torch.equal(ranks[0]["teacher"][name], alone[name]) for name in alone)
    # The student does: blended rows are those of its weights, and of each rank's statistics.
    cfg = refresh_cfg(folder, *BLEND)
    student = [build_model(cfg).student for _ in ranks]
    for network, result in zip(student, ranks):
        network.load_state_dict(result["blend_student"])
    plain = build_person_search_table_loader(cfg, cfg.DATASETS.TRAIN)
    teacher = write_refresh_setting(folder).rows.double().numpy()
    mixed = teacher + means_of(student, plain, len(teacher))
    expected = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    np.testing.assert_allclose(ranks[0]["blend"]["table.rows"].numpy(), expected, atol=1e-5)


# -------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    "overrides, words",
    [
        ((KEY + "REFRESH_SOURCE", "student"), ["REFRESH_SOURCE 'student'", "teacher", "blend"]),
        ((KEY + "REFRESH_SOURCE", "blend"), ["REFRESH_SOURCE 'blend'", "MODE 'frozen'"]),
        ((*BLEND, KEY + "REFRESH_STUDENT_SHARE", 1.0), ["REFRESH_STUDENT_SHARE 1.0"]),
        ((*BLEND, KEY + "REFRESH_STUDENT_SHARE", 0.0), ["REFRESH_STUDENT_SHARE 0.0"]),
        (
            ("DISTILLATION.TEACHER.CONFIG_FILE", ""),
            ["ID_TABLE.REFRESH_SOURCE 'teacher'", "DISTILLATION.TEACHER.CONFIG_FILE"],
        ),
        (
            ("DISTILLATION.TEACHER.BATCH_STATISTICS", True),
            ["ID_TABLE.REFRESH_SOURCE 'teacher'", "TEACHER.BATCH_STATISTICS"],
        ),
    ],
)
def test_a_refresh_that_cannot_be_is_refused_in_one_line(folder, overrides, words):
    register(folder, KIND)
    with pytest.raises(ValueError) as caught:
        build_model(refresh_cfg(folder, *overrides))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_teacher_with_other_embeddings_or_none_is_refused(folder, tmp_path):
    register(folder, KIND)
    wider = refresh_cfg(folder).clone()
    wider.MODEL.META_ARCHITECTURE = "PersonSearchRCNN"
    wider.MODEL.REID_HEAD.EMBEDDING_DIM = 16
    for cfg, found in ((wider, "size 16"), (tiny_detector_cfg("fpn", 1), "size 0")):
        teacher = save_teacher(tmp_path, cfg)
        with pytest.raises(ValueError) as caught:
            build_model(refresh_cfg(folder, *teacher))
        message = str(caught.value)
        assert found in message and "size 8" in message and "\n" not in message
        assert "TEACHER.CONFIG_FILE" in message and "ID_TABLE.PATH" in message


def test_without_a_period_no_teacher_is_built(folder):
    register(folder, KIND)
    options = (KEY + "REFRESH_PERIOD", 0, "DISTILLATION.TEACHER.CONFIG_FILE", "")
    model = build_model(refresh_cfg(folder, *options))
    assert model.teacher is None and model.terms["IDTableTerm"].refresh is None
