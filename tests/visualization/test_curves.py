"""Training logs as they are found after kills and resumes, and the curves drawn from them."""

import json
import math

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from kd_search.visualization import draw_loss_curves, loss_terms, read_metrics
from kd_search.visualization.curves import smooth


def write_log(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def rows(start, stop, value, step=20):
    return [{"iteration": i, "total_loss": value} for i in range(start, stop, step)]


def test_reads_what_detectron2_writes(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage(0) as storage:
        writer = JSONWriter(str(path))
        for i in range(4):
            storage.put_scalars(total_loss=4.0 - i, loss_cls=1.0, smoothing_hint=False)
            writer.write()
            storage.step()
        writer.close()
    log = read_metrics(path)
    assert list(log) == [0, 1, 2, 3]
    assert [scalars["total_loss"] for scalars in log.values()] == [4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("tail", ['{"iteration": 99, "total_l', "{", '{"iteration": 99}garbage'])
def test_truncated_last_line_is_left_out(tmp_path, tail):
    path = write_log(tmp_path / "m.json", rows(0, 60, 1.0), tail)
    assert list(read_metrics(path)) == [0, 20, 40]


def test_line_behind_a_truncated_one_counts(tmp_path):
    path = write_log(tmp_path / "m.json", rows(0, 40, 1.0), '{"iteration": 40, "total_lo')
    with open(path, "a") as stream:
        stream.write(json.dumps({"iteration": 60, "total_loss": 2.0}) + "\n")
    assert list(read_metrics(path)) == [0, 20, 60]


def test_resumed_run_replaces_what_was_lost(tmp_path):
    lost = rows(0, 100, 1.0)
    path = write_log(tmp_path / "m.json", lost + rows(40, 80, 2.0))
    log = read_metrics(path)
    assert {i: s["total_loss"] for i, s in log.items()} == {0: 1, 20: 1, 40: 2, 60: 2}


def test_resumed_run_with_another_period_replaces_what_was_lost(tmp_path):
    path = write_log(tmp_path / "m.json", rows(0, 100, 1.0) + rows(50, 61, 2.0, step=10))
    assert list(read_metrics(path)) == [0, 20, 40, 50, 60]


def test_rows_of_one_write_in_any_order_are_kept(tmp_path):
    """JSONWriter writes a scalar that was put earlier than the others as a row of its own."""
    path = write_log(
        tmp_path / "m.json",
        [
            {"iteration": 19, "total_loss": 3.0},
            {"iteration": 15, "skipped_steps": 1},
            {"iteration": 39, "total_loss": 2.0},
            {"iteration": 39, "lr": 0.1},
        ],
    )
    log = read_metrics(path)
    assert list(log) == [15, 19, 39]
    assert log[39] == {"total_loss": 2.0, "lr": 0.1}


def test_log_of_other_content_is_empty_and_a_missing_one_named(tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(b'\xff\xfe\n[]\n{"no": 1}\n"text"\n\n')
    assert read_metrics(path) == {}
    with pytest.raises(FileNotFoundError, match="absent.json"):
        read_metrics(tmp_path / "absent.json")


def test_loss_terms_of_all_runs_total_first():
    runs = {
        "a": {0: {"lr": 1.0, "loss_oim": 1.0, "total_loss": 2.0}},
        "b": {5: {"loss_id_table": 1.0, "loss_cls": 1.0}},
    }
    assert loss_terms(runs) == ["total_loss", "loss_cls", "loss_id_table", "loss_oim"]


@pytest.mark.parametrize("window", [1, 3, 4, 50])
def test_smooth_is_the_mean_of_the_window(window):
    values = np.random.default_rng(0).normal(size=17)
    values[[2, 9]] = np.nan, np.inf
    half = window // 2
    for i, mean in enumerate(smooth(values, window)):
        near = [v for v in values[max(i - half, 0) : i + half + 1] if math.isfinite(v)]
        expected = sum(near) / len(near) if near else math.nan
        assert mean == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_every_run_is_drawn_in_every_panel_that_it_has():
    runs = {
        "one": {i: {"total_loss": 3.0, "loss_oim": 1.0} for i in range(0, 50, 5)},
        "two": {i: {"total_loss": 1.0} for i in range(0, 50, 5)},
    }
    both, one = (draw_loss_curves(runs, [term]) for term in ("total_loss", "loss_oim"))
    first, second = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)

    def count(image, colour):
        return int((image == np.array(colour, np.uint8)).all(axis=2).sum())

    assert count(both, first) > 100 and count(both, second) > 100
    assert count(one, first) > 100 and count(one, second) == 0


def test_dark_curves_are_dark():
    runs = {"one": {0: {"total_loss": 3.0}, 1: {"total_loss": 2.0}}}
    assert draw_loss_curves(runs).mean() > 200
    assert draw_loss_curves(runs, dark=True).mean() < 60


def test_runs_from_files_with_non_finite_losses_and_a_single_point_are_drawn(tmp_path):
    path = write_log(tmp_path / "m.json", [{"iteration": 0, "total_loss": math.nan}])
    image = draw_loss_curves({"nan": path, "point": {3: {"total_loss": 1.0}}})
    assert image.dtype == np.uint8 and image.ndim == 3


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no losses.*empty"):
        draw_loss_curves({"empty": {0: {"lr": 1.0}}})
