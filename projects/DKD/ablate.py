#!/usr/bin/env python
"""Train the rows of an ablation of DKD (Zhang et al., AAAI 2021), several seeds each, with a table.

    python projects/DKD/ablate.py --seeds 1 2 3 --jobs 2
    python projects/DKD/ablate.py --set prw_c6 --rows none all --sia no-SIA ISA+FSA
    python projects/DKD/ablate.py --sensitivity MARGIN 0.1 0.3 0.5

Terms {none, probability, +pair, +triplet, all} with {no-SIA, ISA, ISA+FSA}. Two re-ID teachers are
trained first, with and without moved boxes (ISA). A student without a teacher is one row: nothing
of that applies to it. --sensitivity trains the student of all terms with several values of one key,
and with the key's default; the key is one of DISTILLATION.DKD or DISTILLATION.SIA, or a full name.

Every run has a folder of its own under --output, with its log. Ctrl-C stops all runs with a
checkpoint; the same command goes on from there, and trains nothing twice. More rows and seeds can
be asked for later. After each run ablation.md, .json and .png are written anew; of --sensitivity
KEY, sensitivity_KEY.md, .json and .png.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from dkd_rows import AUGMENTATIONS, NONE, TERMS, DKDRow, chosen, grid_rows, sensitivity_rows

from kd_search.experiments import (
    Networks,
    Run,
    Study,
    TableLayout,
    add_network_options,
    add_run_options,
    build_run_config,
    carry_out,
    check_run_options,
    config_value,
    facts_of,
    fill_in_set,
    markdown_grid,
    student_arch,
    student_runs,
    study_parser,
    teacher_run,
)

REPO = Path(__file__).resolve().parent.parent.parent
CONFIGS = "projects/DKD/configs"
METRICS = ("mAP", "top1", "det_AP", "det_recall", "reid_mAP", "reid_top1")
#: Nodes whose keys --sensitivity takes by their last name.
NODES = ("DISTILLATION.DKD", "DISTILLATION.SIA")

SETS = {
    name: Networks(
        f"{CONFIGS}/{name}/student_r18w50_fpn.yaml", f"{CONFIGS}/{name}/reid_teacher_r18.yaml"
    )
    for name in ("generated", "prw_c6")
}


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = study_parser(__doc__)
    add = parser.add_argument
    add_network_options(parser, SETS, "generated")
    add("--teacher-seed", type=int, default=1)
    add("--sia", nargs="+", default=[], metavar="SIA", help=f"of {', '.join(AUGMENTATIONS)}")
    add("--sensitivity", nargs="+", default=[], metavar="KEY VALUE", help="instead of the rows")
    add_run_options(parser, list(TERMS), "output/dkd/ablation_SET")
    args = parser.parse_args(argv)
    check_run_options(parser, args)
    if len(args.sensitivity) == 1:
        parser.error("--sensitivity needs a key and at least one value")
    if args.sensitivity and (args.rows or len(args.sia) > 1):
        parser.error("--sensitivity has rows of its own, and at most one of --sia")
    fill_in_set(args, SETS, "output/dkd")
    return args


def make_study(args: argparse.Namespace) -> Study:
    """What the command line asks for.

    Args:
        args: of :func:`parse_args`.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or what is wrong with a config.
    """
    output = args.output.absolute()
    student = build_run_config(args.student_config, args.opts, output)
    facts = facts_of(args)
    layout, below = TableLayout(METRICS, base=NONE), lambda table: ""
    if args.sensitivity:
        grid_rows([], args.sia)  # names what is wrong with --sia
        key = full_key(student, args.sensitivity[0])
        rows = _sensitivity(args, student, key)
        base = next(row.name for row in rows if not row.overrides)
        layout = TableLayout(METRICS, base=base, stem=f"sensitivity_{key.rsplit('.', 1)[-1]}")
        facts["sensitivity"] = key
    else:
        rows = grid_rows(args.rows, args.sia)
        below = lambda table: grids(table, rows, chosen(args.sia))  # noqa: E731
    teachers = _teacher_runs(args, rows)
    return Study(
        rows=rows,
        runs=student_runs(
            args,
            student,
            rows,
            _opts_of(args, student_arch(student), teachers),
            folder_of=lambda row: row.folder,
        ),
        layout=layout,
        output=output,
        dataset=student.DATASETS.TEST[0],
        train_dataset=student.DATASETS.TRAIN[0],
        teachers={run.name: run for run in teachers.values()},
        facts=facts,
        below=below,
    )


def full_key(cfg, name: str) -> str:
    """The config key that is meant.

    Raises:
        ValueError: there is none.
    """
    for key in (name, *(f"{node}.{name}" for node in NODES)):
        if config_value(cfg, key) is not None:
            return key
    known = [key for node in NODES for key in config_value(cfg, node)]
    raise ValueError(
        f"--sensitivity: {name!r} is none of {', '.join(known)}, nor a full config key"
    )


def _sensitivity(args: argparse.Namespace, student, key: str) -> list[DKDRow]:
    """Rows of ``--sensitivity``, the one with the default value among them."""
    values = list(dict.fromkeys(args.sensitivity[1:]))
    default = config_value(student, key)
    same = [value for value in values if _decoded(args, key, value) == default]
    if not same:
        same = [str(default)]
        values = [*same, *values]
    return sensitivity_rows(key, values, same[0], args.sia[0] if args.sia else "ISA+FSA")


def _decoded(args: argparse.Namespace, key: str, value: str):
    cfg = build_run_config(args.student_config, [*args.opts, key, value], args.output)
    return config_value(cfg, key)


def _teacher_runs(args: argparse.Namespace, rows: list[DKDRow]) -> dict[bool, Run]:
    """The teachers that the rows need, by whether boxes moved in their training."""
    wanted = {AUGMENTATIONS[row.augmentation].image_level for row in rows if row.terms}
    return {
        moved: teacher_run(
            args,
            args.teacher_seed,
            name="teacher, ISA" if moved else "teacher",
            folder="teacher_isa" if moved else "teacher",
            opts=["REID_DATA.SIA.IMAGE_LEVEL", moved],
        )
        for moved in sorted(wanted)
    }


def _opts_of(
    args: argparse.Namespace, arch: str, teachers: dict[bool, Run]
) -> Callable[[DKDRow, int], list]:
    def opts_of(row: DKDRow, seed: int) -> list:
        if not row.terms:
            return row.student_opts(arch, "", "")
        augmentation = AUGMENTATIONS[row.augmentation]
        weights = str(teachers[augmentation.image_level].weights)
        taught_by = (args.teacher_config, weights, args.teacher_opts)
        opts = row.student_opts(arch, *taught_by, teacher="REID_TEACHER")
        if not augmentation.feature_level:
            # Boxes stay where they are. Runs at the same time must not write one cache.
            cache = args.output.absolute() / row.folder / f"seed{seed}" / "teacher_features"
            opts += ["DISTILLATION.REID_TEACHER.CACHE_DIR", str(cache)]
        return opts

    return opts_of


def grids(table: list[dict], rows: list[DKDRow], augmentations: list[str]) -> str:
    """mAP and top-1 with terms down and augmentations across, as Markdown."""
    names = {(row.taught, row.augmentation): row.name for row in rows}
    cells = {}
    for terms in dict.fromkeys(row.taught for row in rows):
        if terms == NONE:
            cells[terms] = [NONE] + [None] * (len(augmentations) - 1)
        else:
            cells[terms] = [names[terms, augmentation] for augmentation in augmentations]
    return "\n".join(
        markdown_grid(table, cells, augmentations, metric, corner=metric)
        for metric in ("mAP", "top1")
    )


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    return carry_out(lambda: make_study(args), jobs=args.jobs, on_train=args.on_train)


if __name__ == "__main__":
    sys.exit(main())
