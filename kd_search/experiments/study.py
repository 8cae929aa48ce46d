"""A study: teachers, then a student for each row and seed, then a table."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, TypeVar

from detectron2.config import CfgNode

from kd_search.experiments.results_file import (
    FORMAT,
    recorded_runs,
    share_environments,
    write_study,
)
from kd_search.experiments.run_facts import shown_metrics
from kd_search.experiments.run_folder import build_run_config
from kd_search.experiments.runs import Run, RunFailed, run_all
from kd_search.experiments.study_options import recorded_command
from kd_search.experiments.table import TEACHER, TableLayout, draw, markdown, summarise, write_text
from kd_search.experiments.tuning import choose_settings, finished_study


@dataclass(frozen=True)
class Row:
    """One row of a table. A project whose rows need more has a subclass."""

    name: str
    #: Config keys and their values.
    overrides: dict[str, Any] = field(default_factory=dict)
    #: The paper's numbers, one for each of :attr:`TableLayout.paper`; empty where it has none.
    paper: tuple[float, ...] = ()
    #: Names from ``DISTILLATION.TERMS``, for :meth:`student_opts`; none for the student alone.
    terms: tuple[str, ...] = ()
    #: A row that the study is about: it has more seeds, see :class:`.study_options.StudyParser`.
    main: bool = False
    #: No student to choose settings for: a teacher, or the common start of the students.
    fixed: bool = False

    def opts(self) -> list[Any]:
        """The overrides as KEY VALUE ..."""
        return [x for pair in self.overrides.items() for x in pair]

    def changes(self, cfg: CfgNode) -> bool:
        """Whether a config has another value for any key of the overrides."""
        return any(config_value(cfg, key) != value for key, value in self.overrides.items())

    def terms_for(self, student_arch: str) -> list[str]:
        """The terms that apply to a student of this meta-architecture."""
        return list(self.terms)

    def student_opts(
        self, student_arch: str, args: argparse.Namespace, weights: str, teacher: str = "TEACHER"
    ) -> list[Any]:
        """KEY VALUE overrides that turn a student's config into this row.

        Args:
            student_arch: meta-architecture of the student.
            args: of :class:`.study_options.StudyParser`.
            weights: of the teacher.
            teacher: node of the teacher below ``DISTILLATION``.
        """
        if not self.terms:
            return ["MODEL.META_ARCHITECTURE", student_arch]
        return [
            *("MODEL.META_ARCHITECTURE", "Distiller"),
            *("DISTILLATION.STUDENT_META_ARCH", student_arch),
            *("DISTILLATION.TERMS", self.terms_for(student_arch)),
            *teacher_opts(args, weights, teacher),
            *self.opts(),
        ]


AnyRow = TypeVar("AnyRow", bound=Row)


def teacher_opts(args: argparse.Namespace, weights: str, node: str = "TEACHER") -> list[Any]:
    """KEY VALUE overrides of a student that name the teacher of a study and its weights."""
    return [
        *(f"DISTILLATION.{node}.CONFIG_FILE", args.teacher_config),
        *(f"DISTILLATION.{node}.WEIGHTS", weights),
        *(f"DISTILLATION.{node}.OPTS", list(args.teacher_opts)),
    ]


def config_value(cfg: CfgNode, key: str) -> Any:
    """Value or node of a config by its dotted key; ``None`` where there is no such key."""
    for part in key.split("."):
        if not isinstance(cfg, dict) or part not in cfg:
            return None
        cfg = cfg[part]
    return cfg


def choose_names(option: str, known: Sequence[str], names: Sequence[str]) -> list[str]:
    """The chosen ones of the known names, in their order; all of them where none is chosen.

    Raises:
        ValueError: an unknown name; the message starts with ``option``.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: {name!r} is none of {', '.join(known)}")
    return [name for name in known if not names or name in names]


def choose_rows(rows: Sequence[AnyRow], names: Sequence[str]) -> list[AnyRow]:
    """Rows by name, see :func:`choose_names`."""
    chosen = choose_names("--rows", [row.name for row in rows], names)
    return [row for row in rows if row.name in chosen]


def schedule(cfg: CfgNode, iterations: Optional[int]) -> list[Any]:
    """KEY VALUE overrides for another number of iterations: steps scale with it, and so does the
    warm-up of a shorter training. None where ``iterations`` is ``None``."""
    if not iterations:
        return []
    scale = iterations / cfg.SOLVER.MAX_ITER
    return [
        *("SOLVER.MAX_ITER", iterations),
        *("SOLVER.STEPS", tuple(max(1, round(step * scale)) for step in cfg.SOLVER.STEPS)),
        *("SOLVER.WARMUP_ITERS", round(cfg.SOLVER.WARMUP_ITERS * min(scale, 1.0))),
    ]


def student_arch(cfg: CfgNode) -> str:
    """Meta-architecture of the student of a distilled or a plain config."""
    arch = cfg.MODEL.META_ARCHITECTURE
    return cfg.DISTILLATION.STUDENT_META_ARCH if arch == "Distiller" else arch


def teacher_run(
    args: argparse.Namespace,
    seed: int,
    *,
    name: str = TEACHER,
    folder: str = TEACHER,
    opts: Sequence[Any] = (),
) -> Run:
    """The training of a teacher in a folder below ``--output``; ``opts`` are KEY VALUE overrides
    that precede ``--teacher-opts``."""
    output, own = args.output.absolute() / folder, [*opts, *args.teacher_opts]
    cfg = build_run_config(args.teacher_config, own, output)
    opts = [*schedule(cfg, args.teacher_iterations), "SEED", seed, *own]
    return Run(name, args.teacher_config, opts, output)


def student_runs(
    args: argparse.Namespace,
    cfg: CfgNode,
    rows: Sequence[AnyRow],
    opts_of: Callable[[AnyRow, int], list[Any]],
    *,
    folder_of: Callable[[AnyRow], str] = lambda row: row.name,
    iterations: Optional[int] = None,
) -> dict[tuple[str, int], Run]:
    """The trainings of the students by (row, seed); all rows of a seed before the next seed.

    Main rows have ``args.main_seeds``, the others ``args.seeds``; the overrides that were chosen
    for a row are the last ones.

    Args:
        args: of :class:`.study_options.StudyParser`.
        cfg: config of the student, for the schedule.
        rows: trained with each seed, in the folder ``folder_of`` below ``--output``.
        opts_of: (row, seed) to KEY VALUE overrides that precede ``--opts``.
        iterations: instead of ``--iterations``.
    """
    runs = {}
    for seed in dict.fromkeys([*args.seeds, *args.main_seeds]):
        for row in rows:
            if seed not in (args.main_seeds if row.main else args.seeds):
                continue
            chosen = dict(args.tuned.get(row.name, {}))
            length = chosen.pop("iterations", None) or iterations or args.iterations
            opts = [*schedule(cfg, length), "SEED", seed, *opts_of(row, seed), *args.opts]
            opts += [x for pair in chosen.items() for x in pair]
            folder = args.output.absolute() / folder_of(row)
            if row.name in args.tuned:
                folder /= args.candidate
            name = " ".join(filter(None, (row.name, args.candidate))) + f", seed {seed}"
            runs[row.name, seed] = Run(name, args.student_config, opts, folder / f"seed{seed}")
    return runs


@dataclass
class Study:
    """The runs of a study and the layout of its table."""

    #: Of :class:`StudyParser`.
    args: argparse.Namespace
    #: Config of the student.
    cfg: CfgNode
    rows: Sequence[Row]
    #: By row and seed, in the order in which they are run.
    runs: dict[tuple[str, int], Run]
    layout: TableLayout
    #: Rows of their own above the others, by name; run first.
    teachers: dict[str, Run] = field(default_factory=dict)
    #: Those of ``runs`` that others depend on; run first.
    first: Sequence[Run] = ()
    #: What the trained teachers are needed for before any student is run, such as a table of their
    #: embeddings; called each time the study is started, so it keeps what is there.
    before_students: Callable[[], None] = lambda: None
    #: Further content of the JSON.
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: Markdown below the table, from its entries.
    below: Callable[[list[dict[str, Any]]], str] = lambda table: ""

    @property
    def output(self) -> Path:
        return self.args.output.absolute()

    @property
    def results_file(self) -> Path:
        """The .json in the output folder."""
        return self.output / f"{self.layout.stem}.json"

    def all_runs(self) -> list[Run]:
        """Every training, those first that others depend on."""
        runs = [*self.first, *self.teachers.values(), *self.runs.values()]
        return list({run.folder: run for run in runs}.values())

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Results so far.

        Raises:
            SettingsError: a folder holds another run.
        """
        results = {key: run.result() for key, run in self.runs.items()}
        return {
            key: self._records[1][key] if result is None else result
            for key, result in results.items()
            if result is not None or key in self._records[1]
        }

    @cached_property
    def _records(self) -> tuple[dict[str, Any], dict[tuple[str, int], Any]]:
        """Teachers and runs of ``--results`` that have the configs of this study."""
        teachers, runs = recorded_runs(self.args.results)

        def is_same(record: Mapping[str, Any], run: Optional[Run]) -> bool:
            return run is not None and (record.get("config_file"), record.get("opts")) == (
                run.config_file,
                self._opts(run),
            )

        return (
            {name: t for name, t in teachers.items() if is_same(t, self.teachers.get(name))},
            {key: run for key, run in runs.items() if is_same(run, self.runs.get(key))},
        )

    def own_runs(self) -> list[Run]:
        """Runs but those that only ``--results`` has."""
        recorded = self._records[1]
        return [
            run for key, run in self.runs.items() if key not in recorded or run.result() is not None
        ]

    def check_nothing_is_lost(self) -> None:
        """Check that ``--results`` has no rows or seeds that writing it would drop.

        Raises:
            ValueError: it has.
        """
        lost = recorded_runs(self.args.results)[1].keys() - self.runs.keys()
        if lost:
            named = ", ".join(f"{row!r} seed {seed}" for row, seed in sorted(lost))
            raise ValueError(
                f"{self.args.results} has runs that this command leaves out ({named}): add them to "
                "--rows and --seeds, or name another file with --results"
            )

    def check_records(self) -> None:
        """Check, when the teachers are trained, that those of the recorded runs were the same.

        Their metrics are compared, with all digits: the SHA-256 of a config changes with every new
        key.

        Raises:
            ValueError: a teacher of ``--results`` has other metrics.
        """
        teachers, runs = self._records
        for name, record in teachers.items() if runs else ():
            result = self.teachers[name].result()
            if result is not None and result["metrics"] != record["metrics"]:
                raise ValueError(
                    f"{self.args.results}: the runs there are of another teacher than the one "
                    f"that was trained here ({name!r} has other metrics): name another file with "
                    "--results"
                )

    def content(self) -> dict[str, Any]:
        """Everything about the finished runs, in the form of :class:`.results_file.StudyFile`."""
        runs = [
            self._record(self.runs[row, seed], {"row": row, "seed": seed, **result})
            for (row, seed), result in self.finished().items()
        ]
        teachers = {
            name: self._record(run, result)
            for name, run in self.teachers.items()
            if (result := run.result() or self._records[0].get(name)) is not None
        }
        environments = share_environments([*teachers.values(), *runs])
        return {
            "format": FORMAT,
            "command": recorded_command(self.args),
            "dataset": self.cfg.DATASETS.TEST[0],
            **study_metadata(self.args),
            **self.metadata,
            "layout": {
                "metrics": list(self.layout.metrics),
                "base": self.layout.base,
                "paper": list(self.layout.paper),
                "stem": self.layout.stem,
            },
            "rows": [
                {"name": row.name, "paper": list(row.paper), "main": row.main} for row in self.rows
            ],
            "environments": environments,
            "protocol": self.args.protocol,
            "teachers": teachers,
            "runs": runs,
        }

    def _record(self, run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
        return {**result, "config_file": run.config_file, "opts": self._opts(run)}

    def _opts(self, run: Run) -> list[str]:
        return [_without_places(str(x), self.output) for x in run.opts]

    def write_table(self) -> str:
        """Write table and picture of the finished runs as .json, .md and .png; returns the
        Markdown. The table of training images, if any, goes to a folder "on_train"."""
        content = self.content()
        texts = []
        for key, folder, dataset in (
            ("metrics", self.output, self.cfg.DATASETS.TEST[0]),
            ("train_metrics", self.output / "on_train", self.cfg.DATASETS.TRAIN[0]),
        ):
            results = {
                (r["row"], r["seed"]): shown_metrics(r, key) for r in content["runs"] if r.get(key)
            }
            if key != "metrics" and not results:
                continue
            others = {
                name: shown_metrics(r, key) for name, r in content["teachers"].items() if r.get(key)
            }
            paper = {row.name: row.paper for row in self.rows}
            queries = {
                (r["row"], r["seed"]): r.get("per_query", {})
                for r in content["runs"]
                if key == "metrics"
            }
            table = summarise(paper, results, others, self.layout, paper, queries)
            title = f"{', '.join(self.layout.shown(table))} on {dataset}"
            below = self.below(table) if table else ""
            text = markdown(table, self.layout, title) + (f"\n{below}" if below else "")
            stem = self.layout.stem
            paths = [folder / f"{stem}.json"]
            paths += [self.args.results] if self.args.results and key == "metrics" else []
            for path in paths:
                write_study(path, {**content, "title": title, "table": table})
            write_text(folder / f"{stem}.md", text)
            draw(table, folder / f"{stem}.png", self.layout, dataset)
            texts.append(text)
        return texts[0]


def study_metadata(args: argparse.Namespace) -> dict[str, Any]:
    """Options of a study that its JSON records."""
    output = args.output.absolute()
    return {
        "student_config": args.student_config,
        "teacher_config": args.teacher_config,
        "overrides": _without_places(args.opts, output),
        "teacher_overrides": _without_places(args.teacher_opts, output),
    }


def _without_places(value: Any, output: Path) -> Any:
    """Overrides as a results file has them, the same on every machine: OUTPUT stands for the folder
    of the study, $KD_SEARCH_... for the folder of a data set."""
    if isinstance(value, (list, tuple)):
        return [_without_places(x, output) for x in value]
    if not isinstance(value, str):
        return value
    places = {
        os.path.abspath(folder): f"${name}"
        for name, folder in os.environ.items()
        if name.startswith("KD_SEARCH_") and folder
    }
    places[str(output)] = "OUTPUT"
    for place in sorted(places, key=len, reverse=True):
        value = value.replace(place, places[place])
    return value


def run_study(make_study: Callable[[argparse.Namespace], Study], args: argparse.Namespace) -> int:
    """Run what a study lacks, and print its table.

    Teachers are run first; if one fails, no student is run. The table is rewritten after each
    student. Runs that the file of ``--results`` has are not run again, so that a study goes on
    where only this file was kept; its teachers are then trained anew, and have to be the same.

    Args:
        make_study: may raise ValueError or FileNotFoundError on wrong options.
        args: of :class:`.study_options.StudyParser`.

    Returns:
        the exit status of the script: 0; 1 where students failed; 2 where nothing could be run; 130
        after Ctrl-C.
    """
    options = {"jobs": args.jobs, "on_train": args.on_train}
    try:
        study = finished_study(make_study, args) if args.finished else make_study(args)
        study.check_nothing_is_lost()
        if args.finished:
            print(study.write_table())
            return 0
        study = choose_settings(make_study, args, study)
        # Recorded before anything is tested; a run refuses to be tested otherwise.
        study.write_table()
        for run in study.all_runs():
            run.choices = study.results_file if args.protocol else None
        if any(run.result() is None for run in study.own_runs()):
            failed = run_all([*study.first, *study.teachers.values()], **options)
            if failed:
                raise RunFailed("; ".join(failed))
            study.before_students()
            study.check_records()
        failed = run_all(study.own_runs(), after_each=study.write_table, **options)
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
