"""From the options of a study to its runs: a teacher, and a student for each row and seed."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Optional

from kd_search.experiments.rows import AnyRow
from kd_search.experiments.run_folder import build_run_config
from kd_search.experiments.runs import Run
from kd_search.experiments.table import TEACHER


def schedule(cfg, iterations: Optional[int]) -> list:
    """Overrides for another number of iterations: steps and warm-up shrink or grow along.

    Args:
        cfg: with the schedule that is scaled.
        iterations: ``None`` for that schedule.
    """
    if not iterations:
        return []
    scale = iterations / cfg.SOLVER.MAX_ITER
    return [
        *("SOLVER.MAX_ITER", iterations),
        *("SOLVER.STEPS", tuple(max(1, round(step * scale)) for step in cfg.SOLVER.STEPS)),
        *("SOLVER.WARMUP_ITERS", round(cfg.SOLVER.WARMUP_ITERS * min(scale, 1.0))),
    ]


def student_arch(cfg) -> str:
    """Meta-architecture of the student, whether the config is a distilled one or plain."""
    arch = cfg.MODEL.META_ARCHITECTURE
    return cfg.DISTILLATION.STUDENT_META_ARCH if arch == "Distiller" else arch


def teacher_run(
    args: argparse.Namespace,
    seed: int,
    *,
    name: str = TEACHER,
    folder: str = TEACHER,
    opts: Sequence = (),
) -> Run:
    """The training of a teacher.

    Args:
        args: options of the study.
        seed: of this training.
        name: in the table and in messages.
        folder: below --output.
        opts: KEY VALUE overrides that come before --teacher-opts.
    """
    output, own = args.output.absolute() / folder, [*opts, *args.teacher_opts]
    cfg = build_run_config(args.teacher_config, own, output)
    opts = [*schedule(cfg, args.teacher_iterations), "SEED", seed, *own]
    return Run(name, args.teacher_config, opts, output)


def student_runs(
    args: argparse.Namespace,
    cfg,
    rows: Sequence[AnyRow],
    opts_of: Callable[[AnyRow, int], list],
    *,
    folder_of: Callable[[AnyRow], str] = lambda row: row.name,
    iterations: Optional[int] = None,
) -> dict[tuple[str, int], Run]:
    """The trainings of the students; all rows of a seed before the next seed.

    Args:
        args: options of the study.
        cfg: the student's config, for the schedule.
        rows: what is trained with each seed.
        opts_of: (row, seed) to KEY VALUE overrides, which come before --opts.
        folder_of: row to its folder below --output.
        iterations: instead of --iterations.

    Returns:
        by name of the row and seed.
    """
    begin = schedule(cfg, iterations or args.iterations)
    runs = {}
    for seed in args.seeds:
        for row in rows:
            opts = [*begin, "SEED", seed, *opts_of(row, seed), *args.opts]
            folder = args.output.absolute() / folder_of(row) / f"seed{seed}"
            name = f"{row.name}, seed {seed}"
            runs[row.name, seed] = Run(name, args.student_config, opts, folder)
    return runs


def facts_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a study's JSON says of the options."""
    return {
        "student_config": args.student_config,
        "teacher_config": args.teacher_config,
        "overrides": list(args.opts),
        "teacher_overrides": list(args.teacher_opts),
    }
