#!/usr/bin/env python
"""Train the rows of Tables 2 and 3 of Chen et al. (NIPS 2017), several seeds each, and tabulate.

    python projects/DetectorKD/tables.py --set table2
    python projects/DetectorKD/tables.py --set table3 --share 0.3

Table 2: the student sees its input at half the size, its teacher the whole. Rows: the student with
the whole input, with half of it, and with half of it and all terms.

Table 3: the trained teacher itself is compressed, to --share of the operations of its 3x3
convolutions, and trained further: on the annotations alone, or with all terms and the whole network
as its teacher. Each share is a study of its own; they have the same --output, and the teacher.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Optional

import small_networks
import torch

from kd_search.checkpoint import load_trained
from kd_search.engine import PersonSearchTrainer
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
    student_arch,
    student_runs,
    study_command,
    teacher_run,
)
from kd_search.pipeline.methods import DETECTOR_TERMS
from kd_search.utils.files import atomic_write

CONFIGS = "projects/DetectorKD/configs"
_TEACHER = f"{CONFIGS}/generated_mini/teacher_r18_fpn64.yaml"
SETS = {
    "table2": Networks(f"{CONFIGS}/generated_mini/student_r18w25_fpn64_distilled.yaml", _TEACHER),
    "table3": Networks(_TEACHER, _TEACHER),
}
_HALF = {
    "MODEL.BACKBONE.NAME": "build_half_input_resnet_fpn_backbone",
    # It has no p2.
    "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
    "DISTILLATION.HINT.FEATURES": ["p3", "p4", "p5"],
}
#: The paper's numbers: PASCAL mAP of AlexNet and of the Tucker network.
_TABLE_2 = (
    Row("whole input", paper=(57.2, 54.7)),
    Row("half input", _HALF, (53.2, 48.6), main=True),
    Row("half input, distilled", _HALF, (56.7, 53.5), DETECTOR_TERMS, main=True),
)
#: The paper's numbers by share: PASCAL mAP of AlexNet, fine-tuned and distilled.
TABLE_3 = {
    0.2: (30.3, 35.5),
    0.25: (49.3, 55.4),
    0.3: (51.4, 56.8),
    0.375: (54.7, 59.4),
    0.45: (55.2, 59.5),
}


def table_3_rows(share: float) -> tuple[Row, ...]:
    """The compressed network trained further, without and with its whole self as teacher."""
    keys = {
        "MODEL.BACKBONE.NAME": "build_tucker_resnet_fpn_backbone",
        "MODEL.TUCKER.SHARE": share,
        "DISTILLATION.HINT.FEATURES": ["p2", "p3", "p4", "p5"],
    }
    paper: list[tuple[float, ...]] = [(number,) for number in TABLE_3.get(share, ())] or [(), ()]
    return (
        Row("fine-tuned", keys, paper[0], main=True),
        Row("distilled", keys, paper[1], DETECTOR_TERMS, main=True),
    )


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    names = [row.name for row in (*_TABLE_2, *table_3_rows(0.3))]
    parser = StudyParser(__doc__, SETS, names, "output/detector_kd", one_teacher=True)
    parser.add_argument("--share", type=float, default=0.3, help="of Table 3")
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        parser.error(f"--share {args.share} must be above 0 and below 1")
    return args


def make_study(args: argparse.Namespace) -> Study:
    """A teacher, and a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    compressed = args.set == "table3"
    rows = choose_rows(table_3_rows(args.share) if compressed else _TABLE_2, args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    teacher, arch = teacher_run(args, args.teacher_seed), student_arch(cfg)
    weights, stem = args.teacher_weights or str(teacher.weights), "table2"
    start = args.output.absolute() / "starts" / f"{args.share:g}.pth"
    if compressed:
        stem = f"table3_{args.share:g}"

    def opts_of(row: Row, seed: int) -> list[Any]:
        opts = row.student_opts(arch, args, weights)
        if not row.terms:
            opts += row.opts()
        return [*opts, "MODEL.WEIGHTS", str(start)] if compressed else opts

    runs = student_runs(args, cfg, rows, opts_of, folder_of=lambda row: f"{stem}/{row.name}")
    for run in runs.values():
        run.imports = (small_networks.__name__,)

    def write_start() -> None:
        """The compressed network, of the same bytes each time."""
        if compressed and runs:
            _write_compressed(next(iter(runs.values())), weights, start)

    return Study(
        args,
        cfg,
        rows,
        runs,
        TableLayout(
            ("AP50", "AP", "AP75"),
            base="fine-tuned" if compressed else "half input",
            paper=("AlexNet, PASCAL",) if compressed else ("AlexNet, PASCAL", "Tucker, PASCAL"),
            stem=stem,
        ),
        teachers={} if args.teacher_weights else {TEACHER: teacher},
        before_students=write_start,
        metadata={"share": args.share} if compressed else {},
    )


def _write_compressed(run: Run, teacher: str, path: Path) -> None:
    """Write the start of the students of Table 3.

    Args:
        run: of any of them.
        teacher: file of the whole network's weights.
        path: to write.
    """
    torch.set_num_threads(1)  # as the runs
    cfg = run.config.clone()
    cfg.defrost()
    if cfg.MODEL.META_ARCHITECTURE == "Distiller":
        cfg.MODEL.META_ARCHITECTURE = cfg.DISTILLATION.STUDENT_META_ARCH
    small = PersonSearchTrainer.build_model(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_width_resnet_fpn_backbone"
    whole = PersonSearchTrainer.build_model(cfg)
    load_trained(whole, teacher)
    state = small_networks.compress(small, whole.state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save({"model": state}, file)


main = study_command(parse_args, make_study, __file__, needs_folder=True)

if __name__ == "__main__":
    sys.exit(main())
