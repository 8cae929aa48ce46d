#!/usr/bin/env python
"""Train plain and query-guided networks with and without the table of a query-guided teacher.

    python projects/QEEPS/ablate.py --seeds 1 2 3
    python projects/QEEPS/ablate.py --set prw_c6 --results projects/QEEPS/results/prw_c6.json

All rows go on from one plain network, for as many iterations as it was trained: the plain network
itself (OIM), the query-guided one (QEEPS), and both with the ID table of a query-guided teacher,
which is trained in the same way. A search with a query-guided network runs it for every query and
gallery picture.
"""

import argparse
import sys
from typing import Any, Optional

import qeeps  # noqa: F401  registers keys and networks
import torch

from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.experiments import (
    TEACHER,
    Networks,
    Row,
    Run,
    Study,
    StudyParser,
    TableLayout,
    build_run_config,
    choose_rows,
    schedule,
    student_runs,
    study_command,
    teacher_run,
)
from kd_search.pipeline.id_table import build_table
from kd_search.pipeline.methods import ID_TABLE_TERM
from kd_search.utils.files import file_sha256

SETS = {
    name: Networks(
        f"projects/QEEPS/configs/{name}/split_r18w50_c4.yaml",
        f"projects/QEEPS/configs/{name}/qeeps_r18w50_c4.yaml",
    )
    for name in ("generated", "prw_c6")
}
# The last two are of all queries, which plain networks alone are searched with.
METRICS = ("mAP", "top1", "all_mAP", "all_top1")
OIM, QEEPS = "PersonSearchRCNN", "QueryGuidedRCNN"
_TABLE = (ID_TABLE_TERM,)
ROWS = (
    Row("OIM", {"MODEL.META_ARCHITECTURE": OIM}),
    Row("QEEPS", {"MODEL.META_ARCHITECTURE": QEEPS}),
    Row("OIM+table", {"DISTILLATION.STUDENT_META_ARCH": OIM}, terms=_TABLE),
    Row("QEEPS+table", {"DISTILLATION.STUDENT_META_ARCH": QEEPS}, terms=_TABLE),
)


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = StudyParser(__doc__, SETS, [row.name for row in ROWS], "output/qeeps")
    parser.add_argument("--teacher-seed", type=int, default=1)
    parser.add_argument(
        "--table", choices=("mean", "oim"), default="mean", help="source, see kd-search table"
    )
    return parser.parse_args(argv)


def make_study(args: argparse.Namespace) -> Study:
    """The plain network, a query-guided teacher from it, its table, a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    rows = choose_rows(ROWS, args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    opts = [*schedule(cfg, args.iterations), "SEED", args.teacher_seed, *args.opts]
    start = Run("start", args.student_config, opts, args.output.absolute() / "start")
    weights = ["MODEL.WEIGHTS", str(start.weights)]
    teacher = teacher_run(args, args.teacher_seed, opts=weights)
    table = teacher.folder / "id_table.pth"

    def opts_of(row: Row, seed: int) -> list[Any]:
        if not row.terms:
            return [*weights, *row.opts()]
        return [
            *weights,
            *("MODEL.META_ARCHITECTURE", "Distiller", "MODEL.OIM.ENABLED", False),
            *("DISTILLATION.TERMS", list(row.terms), "DISTILLATION.ID_TABLE.PATH", str(table)),
            *("DISTILLATION.ID_TABLE.QUEUE_SIZE", cfg.MODEL.OIM.QUEUE_SIZE),
            *row.opts(),
        ]

    def write_table() -> None:
        """The table of the trained teacher, unless it is there."""
        digest = file_sha256(teacher.weights)
        if table.is_file():
            written = IDTableFile.load(table)
            if (written.teacher_sha256, written.source) == (digest, args.table):
                return
        torch.set_num_threads(1)  # as the runs
        build_table(teacher.config, str(teacher.weights), args.table).save(table)

    runs = student_runs(args, cfg, rows, opts_of)
    for run in (start, teacher, *runs.values()):
        run.imports = ("qeeps",)
    return Study(
        args,
        cfg,
        rows,
        runs,
        TableLayout(METRICS, base=rows[0].name),
        teachers={TEACHER: teacher},
        first=[start],
        before_students=write_table,
    )


main = study_command(parse_args, make_study, __file__, needs_folder=True)

if __name__ == "__main__":
    sys.exit(main())
