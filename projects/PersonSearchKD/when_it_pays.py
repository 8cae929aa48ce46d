#!/usr/bin/env python
"""What the teacher's ID table gains over training length, number of people, or student width.

    python projects/PersonSearchKD/when_it_pays.py --over iterations 150 300 600 1200
    python projects/PersonSearchKD/when_it_pays.py --over people 15 30 60 --seeds 1 2 3 4 5
    python projects/PersonSearchKD/when_it_pays.py --set r18w50 --over width 0.25 0.5 1.0

For each value a study of ablate.py, of the student alone and with the table, with a results file;
documents draw the gain as a curve from these files (docs/results.md). All options of ablate.py can
be used; --output and --results are folders here. The value that all studies have anyhow, such as
the number of people of the training set, is one study for all three, "middle".

Over iterations: the students' schedules; the teacher stays. Over people: that many identities of
the training set, drawn at random, keep theirs and the others are unlabelled, so that pictures and
boxes are the same; each number has a teacher of its own. Over width: channels of the student's
ResNet, as a factor.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Any, Optional

import person_search_study as student_study
from detectron2.config import CfgNode

from kd_search.data.person_search.coco_json import read_coco_json
from kd_search.data.person_search.id_map import is_labelled
from kd_search.data.person_search.register import SplitFiles, locate_split
from kd_search.experiments import build_run_config, run_study
from kd_search.utils.files import write_json

AXES = {"iterations": int, "people": int, "width": float}
WIDTH = "MODEL.RESNETS.WIDTH_MULTIPLIER"
#: Of the people that keep their identity.
PEOPLE_SEED = 0
#: The shipped setting of this set, see the README.
GENERATED_OPTS = ["DISTILLATION.ID_TABLE.QUEUE", "off"]


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    """Options of this script; ``rest`` are those of ablate.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--over", nargs="+", required=True, metavar="X", help=f"{', '.join(AXES)}, and its values"
    )
    parser.add_argument("--set", choices=sorted(student_study.SETS), default="generated")
    parser.add_argument("--output", type=Path, help="default: output/person_search_kd/when_SET")
    parser.add_argument("--results", type=Path, help="folder; default: below --output")
    args, rest = parser.parse_known_args(argv)
    args.rest = rest
    args.given = list(sys.argv[1:] if argv is None else argv)
    axis, *values = args.over
    if axis not in AXES or not values:
        parser.error(f"--over needs one of {', '.join(AXES)} and at least one value")
    try:
        args.values = [AXES[axis](value) for value in values]
    except ValueError:
        parser.error(f"--over {axis}: {' '.join(values)} are not all numbers")
    if min(args.values) <= 0:
        parser.error(f"--over {axis}: {min(args.values)} is not above 0")
    args.axis = axis
    args.output = args.output or Path(f"output/person_search_kd/when_{args.set}")
    args.results = args.results or args.output / "results"
    return args


def options_of(args: argparse.Namespace, value: Any) -> argparse.Namespace:
    """Options of ablate.py for one value.

    Raises:
        FileNotFoundError, ValueError: the training set cannot be read, or has too few people.
    """
    words = ["--set", args.set, "--output", str(args.output), *args.rest]
    found = student_study.parse_args(words)
    found.given, found.script = args.given, os.path.abspath(__file__)
    found.rows = found.rows or [student_study.NONE, "table"]
    if args.set == "generated":
        found.opts = [*GENERATED_OPTS, *found.opts]
    cfg = build_run_config(found.student_config, found.opts, found.output)
    width = cfg.MODEL.RESNETS.WIDTH_MULTIPLIER
    middle = {
        "iterations": lambda: found.iterations or cfg.SOLVER.MAX_ITER,
        "people": lambda: len(_people(_training_set(cfg))),
        "width": lambda: width,
    }
    point = "middle" if value == middle[args.axis]() else f"{args.axis}_{value}"
    found.point, found.results = f"_{point}", args.results / f"{args.set}_{point}.json"
    if point == "middle":
        # Curves over the width take it from the overrides.
        found.opts = [*found.opts, WIDTH, width]
    elif args.axis == "iterations":
        found.iterations = value
    elif args.axis == "width":
        found.opts = [*found.opts, WIDTH, value]
    else:
        found.output = args.output / point
        keys = keep_people(cfg, value, found.output)
        found.opts, found.teacher_opts = [*found.opts, *keys], [*found.teacher_opts, *keys]
    return found


def _training_set(cfg: CfgNode) -> SplitFiles:
    name, *more = cfg.DATASETS.TRAIN
    files = locate_split(name)
    if more or not isinstance(files, SplitFiles):
        raise ValueError(f"--over people: {name} is not one person search set in COCO-JSON")
    return files


def _people(files: SplitFiles) -> set[Any]:
    annotations = read_coco_json(files.json_file)["annotations"]
    return {a["person_id"] for a in annotations if is_labelled(a["person_id"])}


def keep_people(cfg: CfgNode, number: int, folder: Path) -> list[Any]:
    """KEY VALUE overrides for a training set where only ``number`` people have an identity.

    Raises:
        FileNotFoundError, ValueError: the set cannot be read, is not one in COCO-JSON, or has too
            few people.
    """
    (name,), files = cfg.DATASETS.TRAIN, _training_set(cfg)
    content, people = read_coco_json(files.json_file), _people(files)
    if number > len(people):
        raise ValueError(f"--over people: {name} has {len(people)}, not {number}")

    def drawn(person: Any) -> str:
        return hashlib.sha256(f"{PEOPLE_SEED}/{person}".encode()).hexdigest()

    kept = set(sorted(people, key=drawn)[:number])
    annotations = [
        a if a["person_id"] in kept else {**a, "person_id": None} for a in content["annotations"]
    ]
    path = folder.absolute() / "train.json"
    # A training that is resumed finds the same file.
    write_json(path, {**content, "annotations": annotations})
    entry = [f"{name}_{number}_people", str(path), files.image_root]
    return [
        *("DATASETS.PERSON_SEARCH_COCO", [*cfg.DATASETS.PERSON_SEARCH_COCO, entry]),
        *("DATASETS.TRAIN", (entry[0],)),
    ]


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(student_study.REPO)
    student_study.add_rivals_path()
    for value in args.values:
        try:
            options = options_of(args, value)
        except (ValueError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        status = run_study(student_study.make_study, options)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
