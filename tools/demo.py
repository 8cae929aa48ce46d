#!/usr/bin/env python
"""Train a distilled person search model on generated data, and write a report.

    python tools/demo.py

Generates a data set, trains a teacher, pre-computes its ID table, trains a small student without
and with the table from the same initial weights, evaluates all three, exports the distilled
student, and writes metrics.json and report.html. A second call skips finished steps and resumes an
interrupted one.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from kd_search.utils.threads import limit_threads, wait_passively

wait_passively()  # before the steps load torch

from demo_steps import DEFAULT_SEED, Demo  # noqa: E402

REPO = Path(__file__).resolve().parent.parent

STEPS = (
    ("data", "generate the data set"),
    ("teacher", "train the teacher"),
    ("table", "pre-compute the teacher's ID table"),
    ("student", "train the student without the table"),
    ("student_distilled", "train the student with the table"),
    ("evaluate", "evaluate all three"),
    ("export", "export the distilled student and check the export"),
    ("report", "write metrics.json and report.html"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--preset", choices=("demo", "tiny"), default="demo", help="size of all")
    args = parser.parse_args()
    os.chdir(REPO)
    limit_threads()
    title = "demo"
    try:
        demo = Demo(args.output.absolute(), seed=args.seed, preset=args.preset)
        for number, (name, what) in enumerate(STEPS, start=1):
            title = f"[{number}/{len(STEPS)}] {what}"
            if demo.is_done(name):
                print(f"{title}: done before", flush=True)
                continue
            print(f"{title} ...", flush=True)
            start = time.monotonic()
            demo.run(name)
            print(f"{title}: {time.monotonic() - start:.0f} s", flush=True)
    except KeyboardInterrupt:
        print(f"\n{title}: interrupted. Run the same command to go on.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{title}: error: {error}", file=sys.stderr)
        return 2
    print(demo.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
