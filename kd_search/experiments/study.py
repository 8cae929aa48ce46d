"""A study: teachers, then a student for each row and seed, then a table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_search.experiments.rows import Row
from kd_search.experiments.runs import Run, RunFailed, run_all
from kd_search.experiments.table import TableLayout, summarise, write_all


@dataclass
class Study:
    """What is run, and what is said of it."""

    rows: Sequence[Row]
    #: By row and seed, in the order in which they are run.
    runs: dict[tuple[str, int], Run]
    layout: TableLayout
    output: Path
    #: Data set of the metrics.
    dataset: str
    #: Data set of those on training images.
    train_dataset: str = ""
    #: What the runs learn from, by name of the table; they are run first.
    teachers: dict[str, Run] = field(default_factory=dict)
    #: Runs that others learn from, too, and rows of the table themselves.
    first: Sequence[Run] = ()
    #: Stands in the JSON.
    facts: Mapping[str, Any] = field(default_factory=dict)
    #: Markdown below the table, from the entries of the table.
    below: Callable[[list[dict]], str] = lambda table: ""

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Results so far.

        Raises:
            SettingsError: a folder holds another run.
        """
        results = {key: run.result() for key, run in self.runs.items()}
        return {key: result for key, result in results.items() if result is not None}

    def write_table(self) -> str:
        """Write table and picture of what is finished; the table as Markdown."""
        teachers = {name: run.result() or {} for name, run in self.teachers.items()}
        finished = self.finished()
        facts = {
            "dataset": self.dataset,
            **self.facts,
            "teachers": teachers,
            "runs": [
                {"row": row, "seed": seed, **result} for (row, seed), result in finished.items()
            ],
        }
        text = self._write("metrics", self.output, self.dataset, teachers, finished, facts)
        if any(result.get("train_metrics") for result in finished.values()):
            folder = self.output / "on_train"
            self._write("train_metrics", folder, self.train_dataset, teachers, finished, facts)
        return text

    def _write(self, key: str, folder: Path, dataset: str, teachers, finished, facts) -> str:
        results = {k: r[key] for k, r in finished.items() if r.get(key)}
        others = {name: r[key] for name, r in teachers.items() if r.get(key)}
        table = summarise(self.rows, results, others, self.layout)
        metrics = [m for m in self.layout.metrics if any(m in e["metrics"] for e in table)]
        title = f"{', '.join(metrics)} on {dataset}"
        below = self.below(table) if table else ""
        return write_all(table, folder, title, facts, self.layout, below=below, caption=dataset)


def carry_out(make_study: Callable[[], Study], *, jobs: int, on_train: bool = False) -> int:
    """Run what a study lacks, and tell how it ended.

    Teachers are run first; if one fails, no student is run. The table is written anew after each
    student.

    Args:
        make_study: may raise ValueError or FileNotFoundError for what is wrong with the options.
        jobs: see :func:`run_all`.
        on_train: see :func:`run_all`; of students and teachers.

    Returns:
        the exit status of the script: 0; 1 where students failed; 2 where nothing could be run; 130
        after Ctrl-C.
    """
    try:
        study = make_study()
        teachers = [*study.first, *study.teachers.values()]
        failed = run_all(teachers, jobs=jobs, on_train=on_train)
        if failed:
            raise RunFailed("; ".join(failed))
        failed = run_all(
            list(study.runs.values()), jobs=jobs, on_train=on_train, after_each=study.write_table
        )
        print(study.write_table())
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command to go on", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stem = study.layout.stem
    print(f"in {study.output}: {stem}.md, {stem}.json, {stem}.png")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0
