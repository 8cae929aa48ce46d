"""Command-line options that all studies share."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional


@dataclass(frozen=True)
class Networks:
    """Config files of a student and of its teacher, relative to the checkout."""

    student: str
    teacher: str


_RUNS = """\
Every run has a folder of its own under --output, with its log. Ctrl-C stops all runs with a
checkpoint; the same command resumes them and trains nothing twice. More rows and seeds can be added
later. The table is written as .md, .json and .png, and again after each run; the .json has every
run, and kd-search results makes the tables of documents from it.

Without --seeds, the rows that a study is about have five seeds, 1 to 5, and the others three.

--candidates names a YAML file of settings to choose from: KEY: VALUE overrides, and "iterations"
for the length of the schedule, as many candidates for each row:

    default:
    - {iterations: 450}
    - {iterations: 900, SOLVER.BASE_LR: 0.0005}
    rows:
      all:
      - {iterations: 450, SOLVER.WEIGHT_DECAY: 0.01}
      - {iterations: 900, SOLVER.WEIGHT_DECAY: 0.05}

They are trained, with teachers of their own, on a part of the training set and compared on people
and frames split off it. The choices are recorded in the .json before anything is tested."""

#: Seeds of the rows that a study is about, and of the others.
MAIN_SEEDS, SEEDS = (1, 2, 3, 4, 5), (1, 2, 3)

#: Options that change no number, left out of the recorded command.
_NOT_RECORDED = ("--jobs", "--output", "--results")


class StudyParser(argparse.ArgumentParser):
    """Command-line options that all studies share; a script adds its own.

    Parsed options are checked, and the defaults that ``--set`` stands for are filled in.

    Args:
        description: docstring of the script.
        sets: networks by the names that ``--set`` takes; the first one is the default.
        rows: names, for the help.
        folder: of the project's results.
        one_teacher: add ``--teacher-weights`` and ``--teacher-seed``, of a study whose students
            have the same teacher.
    """

    def __init__(
        self,
        description: Optional[str],
        sets: Mapping[str, Networks],
        rows: Sequence[str],
        folder: str,
        *,
        one_teacher: bool = False,
    ) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=_RUNS, formatter_class=raw)
        self.sets, self.folder = sets, folder
        add = self.add_argument
        add("--set", choices=sorted(sets), default=next(iter(sets)), help="default networks")
        add("--student-config", help="instead of the set's; distilled or plain")
        add("--teacher-config", help="instead of the set's")
        add("--rows", nargs="+", default=[], metavar="ROW", help=f"of {', '.join(rows)}")
        add("--seeds", nargs="+", type=int, metavar="SEED", help="default: see above")
        add("--iterations", type=int, help="instead of the student's SOLVER.MAX_ITER")
        add("--output", type=Path, help=f"default: {folder}/ablation_SET")
        add("--jobs", type=int, default=1, help="runs at a time, one core each")
        add("--on-train", action="store_true", help="evaluate on training images too")
        add("--opts", nargs="+", default=[], metavar="X", help="KEY VALUE ... of every student")
        add("--teacher-opts", nargs="+", default=[], metavar="X", help="KEY VALUE ... of teachers")
        add("--teacher-iterations", type=int, help="instead of the teacher's SOLVER.MAX_ITER")
        add("--results", type=Path, metavar="FILE", help="write the .json there, too")
        add("--candidates", type=Path, metavar="FILE", help="settings to choose from, see above")
        add(
            "--tuning-seeds", nargs="+", type=int, default=[1], metavar="SEED", help="of candidates"
        )
        add("--finished", action="store_true", help="train nothing: table of the finished runs")
        if one_teacher:
            add("--teacher-weights", help="a trained teacher; otherwise one is trained")
            add("--teacher-seed", type=int, default=1)

    def parse_args(self, args=None, namespace=None):
        given = list(sys.argv[1:] if args is None else args)
        args = super().parse_args(args, namespace)
        args.script, args.given = os.path.abspath(sys.argv[0]), given
        for option, opts in (("--opts", args.opts), ("--teacher-opts", args.teacher_opts)):
            if len(opts) % 2:
                self.error(f"{option} must be pairs KEY VALUE")
        if args.jobs < 1:
            self.error("--jobs must be at least 1")
        args.main_seeds = args.seeds or list(MAIN_SEEDS)
        args.seeds = args.seeds or list(SEEDS)
        #: Chosen overrides by row, and the folder of a candidate; see kd_search.experiments.tuning.
        args.tuned, args.candidate, args.protocol = {}, "", None
        networks = self.sets[args.set]
        args.student_config = args.student_config or networks.student
        args.teacher_config = args.teacher_config or networks.teacher
        args.output = args.output or Path(self.folder) / f"ablation_{args.set}"
        return args


def study_command(
    parse_args: Callable[[Optional[list[str]]], argparse.Namespace],
    make_study: Callable[[argparse.Namespace], Any],
    script: str,
    *,
    needs_folder: bool = False,
) -> Callable[..., int]:
    """The ``main`` of a project's ablate.py: it runs the study from the folder of the checkout.

    Args:
        parse_args, make_study: of the script, see :func:`.study.run_study`.
        script: its file, ``projects/NAME/ablate.py``.
        needs_folder: runs, which are processes of their own, import a package in the script's
            folder.
    """
    folder = Path(script).resolve().parent

    def main(argv: Optional[list[str]] = None) -> int:
        from kd_search.experiments.study import run_study  # imports this module

        args = parse_args(argv)
        os.chdir(folder.parent.parent)
        if needs_folder:
            paths = (str(folder), os.environ.get("PYTHONPATH", ""))
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return run_study(make_study, args)

    return main


def recorded_command(args: argparse.Namespace) -> str:
    """The command line of a study without the options that change no number."""
    kept, given = [], iter(args.given)
    for word in given:
        if word in _NOT_RECORDED:
            next(given, None)
        elif word != "--finished" and not word.startswith(tuple(f"{o}=" for o in _NOT_RECORDED)):
            kept.append(word)
    return shlex.join(["python", os.path.relpath(args.script), *kept])
