"""Run one benchmark of this folder: ``python benchmarks/run.py NAME [--json FILE]``.

The exit status is 0 if every row is ``ok``, 1 if one is not, 2 if the call is wrong. README.md of
this folder documents the interface of a benchmark module and the rows.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
#: Benchmarks that read ``harness.scale``.
SCALES = ("gallery", "prototypes", "search_eval")


def benchmark_names():
    """Names of the benchmarks: the modules of this folder but this one and ``_private`` ones."""
    names = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(name for name in names if name != "run" and not name.startswith("_"))


def pin_threads(count):
    """Pin every thread pool; must be called before the first import of numpy or torch."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(count)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(benchmark_names())}")
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file as JSON")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each library")
    parser.add_argument(
        "--full", action="store_true", help="no sampling of slow references: the whole input"
    )
    parser.add_argument(
        "--scale",
        action="store_true",
        help=f"how time and memory grow with the input instead ({', '.join(SCALES)})",
    )
    return parser.parse_args(argv)


def complain(message):
    print(f"benchmarks/run.py: {message}", file=sys.stderr)
    return 2


def main(argv=None):
    arguments = parse_arguments(argv)
    if arguments.name not in benchmark_names():
        names = ", ".join(benchmark_names())
        return complain(f"unknown benchmark {arguments.name!r}; there are: {names}")
    if arguments.repeats < 1 or arguments.threads < 1:
        return complain("--repeats and --threads must be at least 1")
    if arguments.json and not Path(arguments.json).resolve().parent.is_dir():
        return complain(f"--json {arguments.json}: its folder does not exist")

    if arguments.scale and arguments.name not in SCALES:
        return complain(f"--scale: only {', '.join(SCALES)} can")

    pin_threads(arguments.threads)
    # The checkout is benchmarked, whether or not it is the installed one.
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    from _harness import Harness

    harness = Harness(
        repeats=arguments.repeats,
        threads=arguments.threads,
        full=arguments.full,
        scale=arguments.scale,
    )
    module = importlib.import_module(arguments.name)
    harness.pin_torch()
    rows = module.run(harness)
    report = {"name": arguments.name, "versions": harness.versions(), "rows": rows}
    harness.print_rows(rows)
    if arguments.json:
        write_json(Path(arguments.json), report)
    return 0 if rows and all(row["ok"] for row in rows) else 1


def write_json(path, report):
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
