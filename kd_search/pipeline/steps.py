"""Steps that can be stopped and run again: each has a record of what it was made from."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from kd_search.utils.files import read_json, write_json

#: States of a task: it has to run; it was interrupted; it ran with other settings or inputs; done.
TODO, STARTED, CHANGED, DONE = "to do", "interrupted", "changed", "done"
_RECORDS = "steps"


@dataclass
class Task:
    """A piece of work with files as its result."""

    #: Unique, and the name of its record.
    name: str
    #: Step that it belongs to; several seeds are several tasks of one step.
    step: str
    #: Description for the console.
    what: str
    run: Callable[[], Any]
    #: Everything that the result depends on besides ``needs``, by name.
    settings: Callable[[], Mapping[str, str]] = dict
    #: Names of tasks whose results it reads.
    needs: Sequence[str] = ()
    #: Files or folders that exist when it is done, or what returns them.
    outputs: Union[Sequence[Path], Callable[[], Sequence[Path]]] = ()
    #: Folder of the result; it is renamed, not removed, where the task runs with other settings.
    keeps: Optional[Path] = None
    #: Iterations of a training, for the estimate of the time that is left.
    iterations: int = 0


@dataclass
class Status:
    """State of a task, and why it has to run again."""

    state: str
    why: str = ""


@dataclass
class Records:
    """Records of the tasks of a project, in files that are replaced atomically.

    A record has the ``settings`` of the task, a random ``run`` that changes whenever the task is
    started anew, the runs of its needs, its ``seconds`` (of all attempts), and ``finished``.
    """

    folder: Path
    #: Prints a line.
    say: Callable[[str], None] = print
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _settings: dict[str, dict[str, str]] = field(default_factory=dict)

    def read(self, name: str) -> dict[str, Any]:
        """The record of a task; empty if there is none."""
        if name not in self._known:
            path = self._path(name)
            self._known[name] = read_json(path, sealed=True) if path.is_file() else {}
        return self._known[name]

    def status(self, task: Task, tasks: Mapping[str, Task]) -> Status:
        """State of a task.

        Settings that only one of two versions of the code has are not compared.

        Raises:
            ValueError, FileNotFoundError: its settings cannot be read.
        """
        record = self.read(task.name)
        if not record:
            return Status(TODO)
        settings, known = self._settings_of(task), record["settings"]
        changed = [key for key in settings if known.get(key, settings[key]) != settings[key]]
        if changed:
            key = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return Status(CHANGED, f"{key} was {known[key]}, is {settings[key]}{more}")
        if record["needs"].keys() != set(task.needs):
            return Status(CHANGED, f"it was made from {', '.join(record['needs'])}")
        for name in task.needs:
            needed = self.read(name)
            if self.status(tasks[name], tasks).state != DONE:
                return Status(CHANGED, f"{name} has to run first")
            if record["needs"].get(name) != needed["run"]:
                return Status(CHANGED, f"{name} has run since")
        if not record["finished"]:
            return Status(STARTED)
        outputs = task.outputs() if callable(task.outputs) else task.outputs
        missing = [path for path in outputs if not path.exists()]
        if missing:
            return Status(TODO, f"{missing[0].name} is missing")
        return Status(DONE)

    def run(self, task: Task, status: Status) -> float:
        """Run a task, or resume it if it was interrupted; returns the seconds of this attempt."""
        record = dict(self.read(task.name))
        if status.state != STARTED:
            self._put_aside(task, status)
            record = {
                "run": os.urandom(8).hex(),
                "settings": self._settings_of(task),
                "needs": {name: self.read(name)["run"] for name in task.needs},
                "seconds": 0.0,
                "finished": False,
            }
            self._write(task.name, record)
        start = time.monotonic()
        try:
            task.run()
            record["finished"] = True
        finally:
            seconds = time.monotonic() - start
            record["seconds"] += seconds
            self._write(task.name, record)
        return seconds

    def mark_done(self, task: Task) -> None:
        """Record a task, without needs, that was done in another way."""
        record = {"run": os.urandom(8).hex(), "settings": self._settings_of(task), "needs": {}}
        self._write(task.name, {**record, "seconds": 0.0, "finished": True})

    def redo(self, option: str, names: Sequence[str]) -> list[str]:
        """Names of tasks to run although they are done, without those that did since the command
        of this option was first given: an interrupted one goes on."""
        known = read_json(self._redo) if self._redo.is_file() else {}
        if known.get("option") == option:
            return list(known["tasks"])
        if names:
            write_json(self._redo, {"option": option, "tasks": list(names)})
        else:
            self._redo.unlink(missing_ok=True)
        return list(names)

    def redone(self, name: str) -> None:
        """Note that a task of :meth:`redo` has run."""
        if self._redo.is_file():
            known = read_json(self._redo)
            known["tasks"] = [task for task in known["tasks"] if task != name]
            if known["tasks"]:
                write_json(self._redo, known)
            else:
                self._redo.unlink()

    def seconds(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Seconds of each step."""
        total: dict[str, float] = {}
        for task in tasks:
            own = self.read(task.name).get("seconds", 0.0)
            total[task.step] = total.get(task.step, 0.0) + own
        return total

    def _put_aside(self, task: Task, status: Status) -> None:
        folder = task.keeps
        if folder is None or not folder.is_dir() or not any(folder.iterdir()):
            return
        number = 1
        while folder.with_name(f"{folder.name}.old{number}").exists():
            number += 1
        kept = folder.with_name(f"{folder.name}.old{number}")
        shutil.move(folder, kept)
        self.say(f"{task.name}: {status.why or 'run anew'}; the earlier run is kept in {kept}")

    def _settings_of(self, task: Task) -> dict[str, str]:
        # Once: a config is merged, and data are read.
        if task.name not in self._settings:
            self._settings[task.name] = dict(task.settings())
        return self._settings[task.name]

    @property
    def _redo(self) -> Path:
        return self.folder / _RECORDS / "redo.json"

    def _path(self, name: str) -> Path:
        return self.folder / _RECORDS / f"task_{name}.json"

    def _write(self, name: str, record: dict[str, Any]) -> None:
        # As it is read from a file.
        self._known[name] = json.loads(json.dumps(record))
        write_json(self._path(name), record, sealed=True)


def select(steps: Sequence[str], only: str, first: str) -> list[str]:
    """Steps to run, by the options ``--only`` and ``--from``; empty strings take all.

    Raises:
        ValueError: there is no such step.
    """
    for option, name in (("--only", only), ("--from", first)):
        if name and name not in steps:
            raise ValueError(f"{option} {name}: the steps are {', '.join(steps)}")
    if only:
        return [only]
    return list(steps[steps.index(first) :]) if first else list(steps)
