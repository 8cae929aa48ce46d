"""What commands take from the output folder of a training. Imports Detectron2."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Optional

from detectron2.config import CfgNode

import kd_search.data  # noqa: F401  registers the data sets
from kd_search.config import import_modules
from kd_search.data.generated import GENERATED_ROOTS
from kd_search.engine import build_config
from kd_search.engine.defaults import register_own_data
from kd_search.engine.finished_run import (
    FinishedRun,
    find_run,
    read_data_sets,
    require_run,
)
from kd_search.evaluation.search.compare_runs import results_file

_ROOTS = (("DETECTRON2_DATASETS", "datasets"), *GENERATED_ROOTS.values())


def network_config(
    args: Namespace, fixed: Sequence[str] = (), *, eval_only: bool = True
) -> tuple[CfgNode, str]:
    """Config of the network that the arguments name, and the file of its weights.

    Args:
        args: of :func:`kd_search.cli._arguments.parse`.
        fixed: overrides that the command needs.
        eval_only: see :func:`kd_search.engine.build_config`.

    Raises:
        FileNotFoundError, ValueError: the input cannot be used; one line.
    """
    import_modules(args.imports)
    if args.run is None:
        cfg = build_config(args.config_file, [*args.opts, *fixed], eval_only=eval_only)
        weights = args.weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise ValueError("no weights: give --weights FILE or MODEL.WEIGHTS")
        return cfg, weights
    run = open_run(args.run, args.imports)
    output = ("OUTPUT_DIR", run.folder)
    cfg = build_config(
        run.config_file,
        [*output, *args.opts, *fixed],
        eval_only=eval_only,
        paths_from=run.working_directory,
    )
    # MODEL.WEIGHTS of a training are those that it started with.
    given = cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in args.opts[::2] else ""
    return cfg, args.weights or given or run.weights


def open_run(path: str, imports: Sequence[str]) -> FinishedRun:
    """The training of an output folder, with its folders of data sets for this process.

    Raises:
        FileNotFoundError: it is no output folder of a training.
        ValueError: it needs modules that were not imported, or is damaged.
    """
    run = require_run(path)
    run.require_imports(imports)
    _find_roots(run)
    return run


def register_data_of(path: str, imports: Sequence[str] = ()) -> None:
    """Register the own data sets of the training that a path is of, if any.

    Raises:
        ValueError: the config of the training is damaged, or names of sets are taken.
    """
    import_modules(imports)
    run = find_run(path)
    if run is not None:
        _find_roots(run)
        register_own_data(read_data_sets(run))


def evaluations(
    runs: Mapping[str, str], dataset: Optional[str] = None, imports: Sequence[str] = ()
) -> dict[str, str]:
    """Files of results by label, after the registration of the runs' own data sets.

    Args:
        runs: paths by label, see :func:`.compare_runs.results_file`.
        dataset: chooses among the sets of a run.
        imports: modules that register data sets.
    """
    files = {label: results_file(path, dataset) for label, path in runs.items()}
    for file in files.values():
        register_data_of(file, imports)
    return files


def _find_roots(run: FinishedRun) -> None:
    """Find the standard folders of data sets from elsewhere, as the training found them."""
    for variable, default in _ROOTS:
        there: Optional[str] = run.working_directory and os.path.join(
            run.working_directory, default
        )
        if variable not in os.environ and not os.path.isdir(default):
            if there and os.path.isdir(there):
                os.environ[variable] = there
