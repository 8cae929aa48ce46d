"""Tasks are skipped, resumed or run anew by what they were made from."""

import json

import pytest

from kd_search.pipeline.steps import CHANGED, DONE, STARTED, TODO, Records, Task, select


class Work:
    """Two tasks, the second of which reads the first; each run appends a line to its file."""

    def __init__(self, folder):
        self.folder = folder
        self.settings = {"train": {"rate": "0.1"}, "test": {}}
        self.fail = False

    def run(self, name):
        place = self.folder / name
        place.mkdir(exist_ok=True)
        with open(place / "out.txt", "a") as file:
            file.write("ran\n")
        if self.fail:
            raise KeyboardInterrupt

    def lines(self, name):
        return (self.folder / name / "out.txt").read_text().count("ran")

    def tasks(self):
        made = {}
        for name, needs in (("train", []), ("test", ["train"])):
            made[name] = Task(
                name,
                name,
                f"do {name}",
                lambda name=name: self.run(name),
                lambda name=name: self.settings[name],
                needs,
                [self.folder / name / "out.txt"],
                keeps=self.folder / name,
            )
        return made

    def states(self):
        tasks, records = self.tasks(), Records(self.folder)
        return [records.status(task, tasks).state for task in tasks.values()]

    def run_all(self):
        """As a new process would."""
        tasks, records = self.tasks(), Records(self.folder)
        for task in tasks.values():
            status = records.status(task, tasks)
            if status.state != DONE:
                records.run(task, status)


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path)


def test_a_finished_task_is_not_run_again(work):
    assert work.states() == [TODO, TODO]
    work.run_all()
    work.run_all()
    assert work.states() == [DONE, DONE] and work.lines("train") == work.lines("test") == 1


def test_changed_settings_run_it_and_what_reads_it_anew_and_keep_the_earlier_folder(work):
    work.run_all()
    work.settings["train"] = {"rate": "0.2"}
    tasks, records = work.tasks(), Records(work.folder)
    status = records.status(tasks["train"], tasks)
    assert status.state == CHANGED and "rate was 0.1, is 0.2" in status.why
    work.run_all()
    assert work.states() == [DONE, DONE]
    # Each folder is new, and the earlier ones are still there.
    assert work.lines("train") == work.lines("test") == 1
    assert work.lines("train.old1") == work.lines("test.old1") == 1


def test_settings_of_the_second_task_leave_the_first_alone(work):
    work.run_all()
    work.settings["test"] = {"top_k": "5"}
    work.run_all()
    assert work.states() == [DONE, DONE]
    # A key that the record does not have comes from another version: it is not compared.
    assert work.lines("test") == 1
    work.settings["test"] = {}
    work.settings["train"] = {"rate": "0.1", "new key": "1"}
    assert work.states() == [DONE, DONE]


def test_an_interrupted_task_goes_on_in_its_folder(work):
    work.fail = True
    with pytest.raises(KeyboardInterrupt):
        work.run_all()
    assert work.states() == [STARTED, TODO]
    work.fail = False
    work.run_all()
    assert work.lines("train") == 2 and not (work.folder / "train.old1").exists()


def test_an_interrupted_task_with_other_settings_does_not_go_on(work):
    work.fail = True
    with pytest.raises(KeyboardInterrupt):
        work.run_all()
    work.fail, work.settings["train"] = False, {"rate": "0.3"}
    work.run_all()
    assert work.lines("train") == 1 and work.lines("train.old1") == 1


def test_a_record_of_a_killed_task_counts_as_interrupted(work):
    work.run_all()
    path = work.folder / "steps" / "task_train.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps({**record, "finished": False}))
    assert work.states() == [STARTED, CHANGED]


def test_a_result_that_is_gone_is_made_again(work):
    work.run_all()
    (work.folder / "test" / "out.txt").unlink()
    assert work.states() == [DONE, TODO]


def test_other_needs_run_it_anew(work):
    work.run_all()
    tasks = work.tasks()
    tasks["test"].needs = []
    assert Records(work.folder).status(tasks["test"], tasks).state == CHANGED


def test_a_damaged_record_is_named(work):
    work.run_all()
    path = work.folder / "steps" / "task_train.json"
    path.write_text(path.read_text().replace("0.1", "0.7"))
    with pytest.raises(ValueError, match="task_train.json"):
        work.states()


def test_seconds_add_up_over_attempts(work):
    work.run_all()
    tasks, records = work.tasks(), Records(work.folder)
    seconds = records.seconds(list(tasks.values()))
    assert set(seconds) == {"train", "test"} and all(value > 0 for value in seconds.values())


def test_an_interrupted_redo_goes_on_where_it_was(tmp_path):
    records = Records(tmp_path)
    assert records.redo("from train", ["train", "test"]) == ["train", "test"]
    records.redone("train")
    assert Records(tmp_path).redo("from train", ["train", "test"]) == ["test"]
    records.redone("test")
    assert Records(tmp_path).redo("from train", ["train", "test"]) == ["train", "test"]
    # Without the option it is forgotten.
    assert Records(tmp_path).redo("", []) == []
    assert Records(tmp_path).redo("from train", ["train"]) == ["train"]


def test_selection_of_steps():
    steps = ["check", "teacher", "student"]
    assert select(steps, "", "") == steps
    assert select(steps, "teacher", "") == ["teacher"]
    assert select(steps, "", "teacher") == ["teacher", "student"]
    with pytest.raises(ValueError, match="--from pupil.*check, teacher, student"):
        select(steps, "", "pupil")
