#!/usr/bin/env python
"""Train the rows of an ablation of DKD (Zhang et al., AAAI 2021), several seeds each, with a table.

    python projects/DKD/ablate.py --seeds 1 2 3 --jobs 2
    python projects/DKD/ablate.py --set prw_c6 --rows none all --sia no-SIA ISA+FSA
    python projects/DKD/ablate.py --sensitivity MARGIN 0.1 0.3 0.5

Terms {none, probability, +pair, +triplet, all} with {no-SIA, ISA, ISA+FSA}. Two re-ID teachers are
trained first, with and without moved boxes (ISA). A student without a teacher is a single row: the
augmentations do not apply to it. So is "two steps", which --rows has to name: a detector, and the
teacher with ISA on crops of the people that it finds.

--sensitivity trains the student of all terms with several values of one key, and with the key's
default; the key is one of DISTILLATION.DKD or DISTILLATION.SIA, or a full name.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from detectron2.config import CfgNode

from kd_search.experiments import (
    TEST_MS,
    Networks,
    Row,
    Study,
    StudyParser,
    TableLayout,
    build_run_config,
    choose_names,
    config_value,
    markdown_cell,
    markdown_table,
    student_arch,
    student_runs,
    study_command,
    teacher_run,
)

CONFIGS = "projects/DKD/configs"
SETS = {
    name: Networks(
        f"{CONFIGS}/{name}/student_r18w50_fpn.yaml", f"{CONFIGS}/{name}/reid_teacher_r18.yaml"
    )
    for name in ("generated", "prw_c6")
}
SETS["prw_c6_mini"] = Networks(
    f"{CONFIGS}/prw_c6_mini/student_mobilenetv2_fpn.yaml",
    f"{CONFIGS}/prw_c6_mini/reid_teacher_mobilenetv2.yaml",
)
METRICS = ("mAP", "top1", "det_AP", "det_recall", "reid_mAP", "reid_top1", TEST_MS)
#: Nodes whose keys --sensitivity takes by their last name.
NODES = ("DISTILLATION.DKD", "DISTILLATION.SIA")

_PROBABILITY, _PAIR, _TRIPLET = (
    "IdentityProbabilityTerm",
    "PairRelationTerm",
    "TripletRelationTerm",
)
NONE = "none"
#: Which terms teach the student. The paper has such tables, but their numbers could not be
#: recovered.
TERMS = {
    NONE: (),
    "probability": (_PROBABILITY,),
    "+pair": (_PROBABILITY, _PAIR),
    "+triplet": (_PROBABILITY, _TRIPLET),
    "all": (_PROBABILITY, _PAIR, _TRIPLET),
}
#: The teacher itself on the crops of a detector, trained without a re-ID head: not in the default
#: rows.
TWO_STEPS = "two steps"
#: Which boxes move: of the crops that the teacher is trained on (ISA, image level), and of the
#: student's people (FSA, feature level).
AUGMENTATIONS = {"no-SIA": (False, False), "ISA": (True, False), "ISA+FSA": (True, True)}


@dataclass(frozen=True)
class DKDRow(Row):
    """A student with its terms and moved boxes."""

    #: Key of :data:`TERMS`, or :data:`TWO_STEPS`.
    taught: str = NONE
    #: Key of :data:`AUGMENTATIONS`; not used by a student without a teacher.
    augmentation: str = "no-SIA"

    @property
    def needs_teacher(self) -> bool:
        return bool(self.terms) or self.taught == TWO_STEPS

    @property
    def folder(self) -> str:
        """Of its runs; the default of a varied key is the row of all terms."""
        if not self.terms:
            return self.taught.replace(" ", "_")
        varied = f"/{self.name.replace(' ', '_')}" if self.overrides else ""
        return f"{self.augmentation}/{self.taught}{varied}"

    def student_opts(
        self, student_arch: str, args: argparse.Namespace, weights: str, teacher: str = "TEACHER"
    ) -> list[Any]:
        if self.taught != TWO_STEPS:
            return super().student_opts(student_arch, args, weights, teacher)
        # As configs/Base-two_step.yaml.
        return [
            *("MODEL.META_ARCHITECTURE", "TwoStepSearch"),
            *("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5),
            *("INPUT.WITH_ORIGINAL_IMAGE", True),
            *("MODEL.TWO_STEP.REID.CONFIG_FILE", args.teacher_config),
            *("MODEL.TWO_STEP.REID.WEIGHTS", weights),
            *("MODEL.TWO_STEP.REID.OPTS", list(args.teacher_opts)),
        ]

    def opts(self) -> list[Any]:
        _, feature_level = AUGMENTATIONS[self.augmentation]
        return ["DISTILLATION.SIA.FEATURE_LEVEL", feature_level, *super().opts()]


def grid_rows(terms: Sequence[str], augmentations: Sequence[str]) -> list[DKDRow]:
    """Rows of the terms with every augmentation, in the order of :data:`TERMS`.

    A student without a teacher is the same under all augmentations: there is one such row.

    Raises:
        ValueError: an unknown name.
    """
    names = choose_names("--rows", [*TERMS, TWO_STEPS], terms or list(TERMS))
    rows = [DKDRow(name, main=True) for name in names if name == NONE]
    if TWO_STEPS in names:
        rows.append(DKDRow(TWO_STEPS, main=True, taught=TWO_STEPS, augmentation="ISA"))
    return rows + [
        DKDRow(
            f"{name}, {sia}",
            terms=TERMS[name],
            main=(name, sia) == ("all", "ISA+FSA"),
            taught=name,
            augmentation=sia,
        )
        for name in names
        if name not in (NONE, TWO_STEPS)
        for sia in choose_names("--sia", list(AUGMENTATIONS), augmentations)
    ]


def sensitivity_rows(args: argparse.Namespace, cfg: CfgNode, key: str) -> list[DKDRow]:
    """The student of all terms with the values of ``--sensitivity`` of one config key.

    The row with the key's default has no overrides: it is that of all terms.
    """

    def decoded(value: str) -> Any:
        opts = [*args.opts, key, value]
        return config_value(build_run_config(args.student_config, opts, args.output), key)

    default, values = config_value(cfg, key), list(dict.fromkeys(args.sensitivity[1:]))
    same = next((value for value in values if decoded(value) == default), None)
    if same is None:
        same = str(default)
        values = [same, *values]
    (augmentation,) = choose_names("--sia", list(AUGMENTATIONS), args.sia or ["ISA+FSA"])
    return [
        DKDRow(
            f"{key.rsplit('.', 1)[-1]} {value}",
            {} if value == same else {key: value},
            terms=TERMS["all"],
            taught="all",
            augmentation=augmentation,
        )
        for value in values
    ]


def full_key(cfg: CfgNode, name: str) -> str:
    """The config key that a name of ``--sensitivity`` refers to.

    Raises:
        ValueError: there is no such key.
    """
    for key in (name, *(f"{node}.{name}" for node in NODES)):
        if config_value(cfg, key) is not None:
            return key
    known = [key for node in NODES for key in config_value(cfg, node)]
    raise ValueError(
        f"--sensitivity: {name!r} is none of {', '.join(known)}, nor a full config key"
    )


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = StudyParser(__doc__, SETS, [*TERMS, TWO_STEPS], "output/dkd")
    add = parser.add_argument
    add("--teacher-seed", type=int, default=1)
    add("--sia", nargs="+", default=[], metavar="SIA", help=f"of {', '.join(AUGMENTATIONS)}")
    add("--sensitivity", nargs="+", default=[], metavar="KEY VALUE", help="instead of the rows")
    args = parser.parse_args(argv)
    if len(args.sensitivity) == 1:
        parser.error("--sensitivity needs a key and at least one value")
    if args.sensitivity and (args.rows or len(args.sia) > 1):
        parser.error("--sensitivity has rows of its own, and at most one of --sia")
    return args


def make_study(args: argparse.Namespace) -> Study:
    """Teachers, and a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    cfg = build_run_config(args.student_config, args.opts, args.output)
    layout, metadata = TableLayout(METRICS, base=NONE), {}
    columns = choose_names("--sia", list(AUGMENTATIONS), args.sia)
    if args.sensitivity:
        key = full_key(cfg, args.sensitivity[0])
        rows = sensitivity_rows(args, cfg, key)
        base = next(row.name for row in rows if not row.overrides)
        layout = TableLayout(METRICS, base=base, stem=f"sensitivity_{key.rsplit('.', 1)[-1]}")
        metadata["sensitivity"] = key
    else:
        rows = grid_rows(args.rows, args.sia)
    # The teachers that the rows need, by whether boxes moved in their training.
    teachers = {
        moved: teacher_run(
            args,
            args.teacher_seed,
            name="teacher, ISA" if moved else "teacher",
            folder="teacher_isa" if moved else "teacher",
            opts=["REID_DATA.SIA.IMAGE_LEVEL", moved],
        )
        for moved in sorted(
            {AUGMENTATIONS[row.augmentation][0] for row in rows if row.needs_teacher}
        )
    }

    def opts_of(row: DKDRow, seed: int) -> list[Any]:
        image_level, feature_level = AUGMENTATIONS[row.augmentation]
        weights = str(teachers[image_level].weights) if row.needs_teacher else ""
        opts = row.student_opts(student_arch(cfg), args, weights, "REID_TEACHER")
        if row.terms and not feature_level:
            # Boxes stay where they are. Runs at the same time must not write one cache.
            cache = args.output.absolute() / row.folder / f"seed{seed}" / "teacher_features"
            opts += ["DISTILLATION.REID_TEACHER.CACHE_DIR", str(cache)]
        return opts

    return Study(
        args,
        cfg,
        rows,
        student_runs(args, cfg, rows, opts_of, folder_of=lambda row: row.folder),
        layout,
        teachers={run.name: run for run in teachers.values()},
        metadata=metadata,
        below=lambda table: "" if args.sensitivity else grids(table, rows, columns),
    )


def grids(table: Sequence[dict[str, Any]], rows: Sequence[DKDRow], columns: Sequence[str]) -> str:
    """mAP and top-1 with terms down and augmentations across, as Markdown."""
    entries = {entry["row"]: entry["metrics"] for entry in table}
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.taught, []).append(row)
    return "\n".join(
        markdown_table(
            [metric, *columns],
            [
                [
                    name,
                    *(markdown_cell(entries.get(row.name, {}).get(metric)) for row in line),
                    *[""] * (len(columns) - len(line)),
                ]
                for name, line in lines.items()
            ],
        )
        for metric in ("mAP", "top1")
    )


main = study_command(parse_args, make_study, __file__)

if __name__ == "__main__":
    sys.exit(main())
