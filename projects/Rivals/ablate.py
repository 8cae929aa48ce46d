#!/usr/bin/env python
"""Train a student with DDPS, PKD or CrossKD, and with terms of kd_search, and tabulate them.

    python projects/Rivals/ablate.py --seeds 1 2 3 --jobs 2
    python projects/Rivals/ablate.py --set prw_c6 --rows none PKD DDPS --candidates FILE

Rows: the student alone, each method, each loss of DDPS alone, and PKD in the place of DDPS's
features. A teacher is trained first, unless --teacher-weights names one.
"""

import argparse
import sys
from typing import Optional

import rivals  # noqa: F401  registers keys, terms and companions

from kd_search.experiments import (
    TEACHER,
    Networks,
    Row,
    Study,
    StudyParser,
    TableLayout,
    build_run_config,
    choose_rows,
    student_arch,
    student_runs,
    study_command,
    teacher_run,
)

SETS = {
    name: Networks(
        f"configs/{name}/student_r18w50_fpn.yaml", f"configs/{name}/teacher_r18_fpn.yaml"
    )
    for name in ("generated", "prw_c6")
}
NONE = "none"
_DFD, _LD, _CD = "DisaggregatedFeatureTerm", "DecoupledLogitTerm", "CorrelationTerm"
ROWS = (
    Row(NONE, main=True),
    Row("PKD", terms=("PearsonTerm",), main=True),
    Row("CrossKD", terms=("CrossHeadTerm",)),
    Row("DFD", terms=(_DFD,)),
    Row("LD", terms=(_LD,)),
    Row("CD", terms=(_CD,)),
    Row("DDPS", terms=(_DFD, _LD, _CD), main=True),
    Row("PKD+LD+CD", terms=("PearsonTerm", _LD, _CD)),
)


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    return StudyParser(__doc__, SETS, names, "output/rivals", one_teacher=True).parse_args(argv)


def make_study(args: argparse.Namespace) -> Study:
    """A teacher, and a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    rows = choose_rows(ROWS, args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    teacher, arch = teacher_run(args, args.teacher_seed), student_arch(cfg)
    weights = args.teacher_weights or str(teacher.weights)
    runs = student_runs(args, cfg, rows, lambda row, seed: row.student_opts(arch, args, weights))
    for run in runs.values():
        run.imports = ("rivals",)
    return Study(
        args,
        cfg,
        rows,
        runs,
        TableLayout(base=NONE),
        teachers={} if args.teacher_weights else {TEACHER: teacher},
    )


main = study_command(parse_args, make_study, __file__, needs_folder=True)

if __name__ == "__main__":
    sys.exit(main())
