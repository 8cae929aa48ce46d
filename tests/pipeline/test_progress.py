"""Progress and remaining time over several trainings."""

import pytest

from kd_search.pipeline.progress import WholeProgress, in_words
from kd_search.pipeline.steps import Task


def training(name, step, iterations):
    return Task(name, step, name, lambda: None, iterations=iterations)


def test_the_rest_is_counted_with_the_speed_of_each_kind():
    tasks = [
        training("teacher", "teacher", 100),
        training("student", "student", 50),
        training("student.seed2", "student", 50),
        Task("report", "report", "report", lambda: None),
    ]
    progress = WholeProgress(tasks)
    # 80 of 200 iterations are done; students are taken to be as fast until one has run.
    text = progress.update("teacher", 20, seconds=6.0)
    assert text == "about 12 min left, 40 % of all trainings"
    progress.done("teacher")
    text = progress.update("student", 25, seconds=1.0)
    assert text == "about 75 s left, 62 % of all trainings"
    # The second student is as fast as the first.
    progress.done("student")
    assert "about 50 s left" in progress.update("student.seed2", 50, seconds=1.0)


def test_trainings_that_do_not_run_count_as_done():
    progress = WholeProgress([training("a", "a", 10), training("b", "b", 30)])
    progress.done("b")
    progress.done("no training")
    assert progress.update("a", 5, seconds=2.0) == "about 10 s left, 88 % of all trainings"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (150, "2 min"), (5400, "1 h 30 min")]
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
