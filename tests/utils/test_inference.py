"""Progress of a pass over a loader in the log."""

import logging

import pytest

from kd_search.utils import inference


@pytest.mark.parametrize("loader, words", [([1] * 4, "1 of 4 batches. ETA="), (iter([1]), ": 1 (")])
def test_batches_are_logged_with_the_expected_end_where_it_is_known(
    monkeypatch, caplog, loader, words
):
    monkeypatch.setattr(inference, "_LOG_EVERY_SECONDS", 0.0)
    progress = inference.Progress(loader, "Embedding people", logging.getLogger("kd_search.x"))
    with caplog.at_level(logging.INFO, "kd_search.x"):
        progress.step(3)
    assert caplog.messages[0].startswith("Embedding people") and words in caplog.messages[0]
    assert progress.images == 3


def test_a_fast_pass_logs_nothing(caplog):
    progress = inference.Progress([1], "Embedding people", logging.getLogger("kd_search.x"))
    with caplog.at_level(logging.INFO, "kd_search.x"):
        progress.step(3)
    assert not caplog.messages and progress.batches == 1
