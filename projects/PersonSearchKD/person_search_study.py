"""Rows of the study of both halves of Munjal et al. (BMVC 2019), and the runs that train them."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Optional

import torch

from kd_search.distillation.methods.id_table import IDTableFile
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
    teacher_run,
)
from kd_search.pipeline.id_table import build_table
from kd_search.pipeline.methods import DETECTOR_TERMS, ID_TABLE_TERM, method_keys
from kd_search.utils.files import file_sha256

REPO = Path(__file__).resolve().parent.parent.parent
RIVALS = REPO / "projects" / "Rivals"
if str(RIVALS) not in sys.path:
    sys.path.append(str(RIVALS))
import rivals  # noqa: E402, F401  registers keys, terms and companions

CONFIGS = "projects/PersonSearchKD/configs/prw_c6_mini"
_TEACHER_CONFIG = f"{CONFIGS}/teacher_mobilenetv2_fpn.yaml"
SETS = {
    "mobilenetv2": Networks(f"{CONFIGS}/student_mobilenetv2_fpn.yaml", _TEACHER_CONFIG),
    "r18w50": Networks(f"{CONFIGS}/student_r18w50_fpn.yaml", _TEACHER_CONFIG),
    "same_size": Networks(_TEACHER_CONFIG, _TEACHER_CONFIG),
    "generated": Networks(
        "configs/generated/student_r18w50_fpn.yaml", "configs/generated/teacher_r18_fpn.yaml"
    ),
}
METRICS = ("mAP", "top1", "det_AP", "det_recall")
NONE = "none"
_TABLE = (ID_TABLE_TERM,)
_PKD = ("PearsonTerm",)
_DDPS = ("DisaggregatedFeatureTerm", "DecoupledLogitTerm", "CorrelationTerm")
ROWS = (
    Row(NONE, main=True),
    Row("table", terms=_TABLE, main=True),
    Row("detector", terms=DETECTOR_TERMS),
    Row("table+detector", terms=(*_TABLE, *DETECTOR_TERMS), main=True),
    Row("PKD", terms=_PKD),
    Row("table+PKD", terms=(*_TABLE, *_PKD)),
    Row("DDPS", terms=_DDPS),
    # Its weights are those of maps of 256 channels and pictures of 900 pixels, with larger sums.
    Row(
        "DDPS x20",
        {
            "DISTILLATION.DDPS.PEOPLE_WEIGHT": 1e-3,
            "DISTILLATION.DDPS.BACKGROUND_WEIGHT": 5e-4,
            "DISTILLATION.DDPS.ATTENTION_WEIGHT": 1e-3,
            "DISTILLATION.DDPS.CONTEXT_WEIGHT": 1e-5,
        },
        terms=_DDPS,
    ),
)


def parse_args(
    argv: Optional[list[str]] = None, description: Optional[str] = None
) -> argparse.Namespace:
    """Options of ablate.py; ``description`` is for its help."""
    parser = StudyParser(
        description or "", SETS, [row.name for row in ROWS], "output/person_search_kd"
    )
    parser.add_argument("--teacher-seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.set != "generated" and "--output" not in args.given:
        args.output = Path("output/person_search_kd/ablation")
    #: A name for one of several studies with the same teacher.
    args.point = ""
    return args


def make_study(args: argparse.Namespace) -> Study:
    """A teacher, its table, and a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    rows = choose_rows(ROWS, args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    teacher, arch = teacher_run(args, args.teacher_seed), student_arch(cfg)
    table, name = teacher.folder / "id_table.pth", args.set + args.point

    def opts_of(row: Row, seed: int) -> list[Any]:
        if not row.terms:
            return ["MODEL.META_ARCHITECTURE", arch]
        return [
            *("MODEL.META_ARCHITECTURE", "Distiller"),
            *("DISTILLATION.STUDENT_META_ARCH", arch),
            *method_keys(row.terms, str(table), args.teacher_config, str(teacher.weights)),
            *("DISTILLATION.TEACHER.OPTS", list(args.teacher_opts)),
            *row.opts(),
        ]

    def write_table() -> None:
        """The table of the trained teacher, unless it is there."""
        digest = file_sha256(teacher.weights)
        if table.is_file() and IDTableFile.load(table).teacher_sha256 == digest:
            return
        torch.set_num_threads(1)  # as the runs
        build_table(teacher.config, str(teacher.weights)).save(table)

    runs = student_runs(args, cfg, rows, opts_of, folder_of=lambda row: f"{name}/{row.name}")
    for run in runs.values():
        run.imports = ("rivals",)
    return Study(
        args,
        cfg,
        rows,
        runs,
        TableLayout(METRICS, base=NONE, stem=f"ablation_{name}"),
        teachers={TEACHER: teacher},
        before_students=write_table,
    )


def add_rivals_path() -> None:
    """Let the runs, which are processes of their own, find the package of the rivals."""
    paths = (str(RIVALS), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
