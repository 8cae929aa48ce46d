"""Runs the tasks of a project in order, skips what is done, and goes on after an interruption."""

import sys
from collections.abc import Callable

from kd_search.engine.launch import is_bad_input
from kd_search.pipeline.console import log_to
from kd_search.pipeline.distill import Distillation
from kd_search.pipeline.outcome import summary
from kd_search.pipeline.progress import in_words
from kd_search.pipeline.steps import CHANGED, DONE, STARTED, TODO, Status, select
from kd_search.utils.folder_lock import alone_in

_INTERRUPTED, _BAD_INPUT = 130, 2


def run_command(
    make_distillation: Callable[[], Distillation],
    only: str = "",
    first: str = "",
    *,
    dry_run: bool = False,
) -> int:
    """Run a project for a command, with the errors in one line.

    Args:
        make_distillation: returns the :class:`.distill.Distillation`.
        only, first, dry_run: see :func:`run`.

    Returns:
        The exit status: 0; 2 for bad input; 130 after Ctrl-C.
    """
    title = [""]
    try:
        distillation = make_distillation()
        if dry_run:
            print(plan(distillation, only, first))
            return 0
        print(run(distillation, only, first, title), flush=True)
    except KeyboardInterrupt:
        print(f"\n{title[0]}interrupted. Run the same command to go on.", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if not (is_bad_input(error) or isinstance(error, OSError)):
            raise
        print(f"{title[0]}error: {error}", file=sys.stderr)
        return _BAD_INPUT
    return 0


def run(distillation: Distillation, only: str, first: str, title: list[str]) -> str:
    """Run the tasks that are not done; returns the summary, where there are results.

    Args:
        distillation: of the project.
        only: run this step alone, also if it is done.
        first: run this step and those after it, also if they are done.
        title: its only entry is set to the task that runs.

    Raises:
        ValueError: of bad input, or ``only`` needs a step that is not done.
    """
    steps, records = select(distillation.steps, only, first), distillation.records
    tasks, console = distillation.tasks, distillation.console
    chosen = [task for task in tasks.values() if task.step in steps]
    option = f"only {only}" if only else f"from {first}" if first else ""
    folder = distillation.project.folder
    with alone_in(folder) as taken_over, console.showing_logs(), log_to(folder / "log.txt"):
        if taken_over:
            console.line(taken_over)
        again = set(records.redo(option, [task.name for task in chosen] if option else []))
        for task in tasks.values():
            if task not in chosen:
                distillation.progress.done(task.name)
        checked = False
        for number, task in enumerate(tasks.values(), start=1):
            if task not in chosen:
                continue
            heading = f"[{number}/{len(tasks)}] {task.what}"
            title[0] = f"{heading}: "
            if task.iterations and not checked:
                distillation.check_terms()
                checked = True
            status = records.status(task, tasks)
            if status.state == DONE and task.name not in again:
                distillation.progress.done(task.name)
                console.line(f"{heading}: done before")
                continue
            if only:
                _require_needs(distillation, task.needs, only)
            if status.state == DONE:
                status = Status(TODO, f"--{option}")
            words = {STARTED: " goes on", CHANGED: f" ({status.why})"}.get(status.state, "")
            console.begin(heading, words)
            seconds = records.run(task, status)
            records.redone(task.name)
            distillation.progress.done(task.name)
            console.end(in_words(seconds))
        title[0] = ""
        whole = all(records.status(task, tasks).state == DONE for task in tasks.values())
    return summary(distillation) if whole else f"ran {', '.join(steps)}"


def plan(distillation: Distillation, only: str, first: str) -> str:
    """Tasks in their order, whether they would run, and the settings of the trainings."""
    steps, lines = select(distillation.steps, only, first), []
    trainings = {run.name: run for run in distillation.runs}
    for number, task in enumerate(distillation.tasks.values(), start=1):
        try:
            status = distillation.records.status(task, distillation.tasks)
        except FileNotFoundError:  # of data that a step before makes
            status = Status(TODO)
        word = status.state + (f": {status.why}" if status.why else "")
        if task.step not in steps:
            word = f"not chosen, {word}"
        elif status.state == DONE and (only or first):
            word = "done before, runs again"
        lines.append(f"[{number}/{len(distillation.tasks)}] {task.step:18} {task.what}: {word}")
        if task.name in trainings:
            lines.append(f"{'':8}{distillation.describe(trainings[task.name])}")
    if distillation.opts:
        lines.append(f"overrides of all networks: {' '.join(distillation.opts)}")
    return "\n".join(lines)


def _require_needs(distillation: Distillation, needs, only: str) -> None:
    for name in needs:
        status = distillation.records.status(distillation.tasks[name], distillation.tasks)
        if status.state != DONE:
            why = f" ({status.why})" if status.why else ""
            raise ValueError(
                f"--only {only} needs {name}, which is {status.state}{why}: run it first"
            )
