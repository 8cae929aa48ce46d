"""Train and evaluate one network in one folder, and write the result to result.json there.

    python -m kd_search.experiments.train_run --config-file CONFIG --output FOLDER KEY VALUE ...

A second call resumes from the last checkpoint. A finished folder is left as it is; one that holds a
run with other settings is refused. The ablate.py of a project runs this command for every row and
seed.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Optional

import torch

from kd_search.config import import_modules
from kd_search.engine.defaults import add_import_argument
from kd_search.experiments.run_folder import train_and_evaluate
from kd_search.utils.folder_lock import alone_in


def main(argv: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kd_search.experiments.train_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, type=Path, help="folder of this run")
    parser.add_argument("--on-train", action="store_true", help="evaluate on the training set too")
    parser.add_argument(
        "--choices", type=Path, help="results file that must hold the choices before the test"
    )
    parser.add_argument("--core", type=int, help="run on this core alone, with one thread")
    add_import_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides")
    args = parser.parse_args(argv)
    if args.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        import_modules(args.imports)
        with alone_in(args.output) as taken_over:
            if taken_over:
                print(taken_over, flush=True)
            result = train_and_evaluate(
                args.config_file,
                args.opts,
                args.output,
                on_train=args.on_train,
                choices=args.choices,
                imports=args.imports,
            )
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result["metrics"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
