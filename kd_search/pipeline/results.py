"""The results file of a finished project, in the form of those of studies (docs/results.md)."""

import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kd_search.evaluation.search.compare_runs import INFERENCE_FOLDER, load_results
from kd_search.experiments.results_file import FORMAT, share_environments
from kd_search.experiments.run_facts import METRICS, config_digest, data_digest, per_query_of
from kd_search.pipeline.distill import Distillation, ModelRun
from kd_search.pipeline.fingerprints import evaluation_settings, training_settings
from kd_search.pipeline.project import DISTILLED, STUDENT, TEACHER, Project
from kd_search.pipeline.steps import DONE
from kd_search.pipeline.training import ENVIRONMENT_FILE
from kd_search.utils.files import read_json

#: Columns of the table, and where results have them.
_METRICS = {
    name: METRICS.get(name, ("person_search", name))
    for name in ("mAP", "top1", "top5", "top10", "det_AP", "det_recall")
}
_PATHS = ("train", "test", "images", "test_images", "queries", "prw", "cuhk_sysu", "mot")


def project_study(folder: Path, imports: Sequence[str] = ()) -> dict[str, Any]:
    """Content of the results file of a project, see :class:`~.results_file.StudyFile`.

    Args:
        folder: of a project whose ``metrics.json`` was written.
        imports: modules that were imported for it.

    Raises:
        FileNotFoundError, ValueError: the project is not finished, or its configs are not those of
            its trainings.
    """
    project = Project.open(folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: end kd-search distill {folder}")
    metrics = read_json(path)
    seeds = [int(seed) for seed in metrics.get("seeds", {}).get(STUDENT, [metrics["seed"]])]
    found = Distillation(project, terms=metrics["terms"], seeds=seeds, imports=imports)
    _require_finished(found)
    names = {STUDENT: "student", DISTILLED: f"student with {', '.join(found.terms)}"}
    teacher = _record(found, found.teacher, metrics)
    runs = [
        {"row": name, "seed": run.seed, **_record(found, run, metrics)}
        for model, name in names.items()
        for run in found.runs_of[model]
    ]
    starts = [run["started"] for run in (teacher, *runs) if run["started"]]
    made = (project.folder / "project.yaml").stat().st_mtime
    # A copy of a folder is younger than its trainings.
    recorded = min([datetime.fromtimestamp(made, timezone.utc).isoformat("T", "seconds"), *starts])
    return {
        "format": FORMAT,
        "command": _command(project, seeds, metrics),
        "dataset": found.test_set,
        "note": _note(project),
        "layout": {"metrics": list(_METRICS), "base": names[STUDENT], "stem": "project"},
        "rows": [{"name": name} for name in names.values()],
        "environments": share_environments([teacher, *runs]),
        "protocol": {"recorded": recorded, "tuned": False},
        "teachers": {TEACHER: teacher},
        "runs": runs,
        # Query by query, with intervals and p values.
        "comparisons": read_json(found.comparisons),
    }


def _require_finished(found: Distillation) -> None:
    for name in (name for run in found.runs for name in (run.name, f"evaluate.{run.name}")):
        status = found.records.status(found.tasks[name], found.tasks)
        if status.state != DONE:
            why = f" ({status.why})" if status.why else ""
            raise ValueError(
                f"{found.project.folder}: {name} is {status.state}{why}: end kd-search distill "
                "without overrides first"
            )


def _record(found: Distillation, run: ModelRun, metrics: dict[str, Any]) -> dict[str, Any]:
    cfg = found.config(run, eval_only=True)
    results = load_results(run.folder / INFERENCE_FOLDER / found.test_set)["metrics"]
    values = {name: results.get(task, {}).get(key) for name, (task, key) in _METRICS.items()}
    path = run.folder / ENVIRONMENT_FILE
    # Trainings of older versions did not record it.
    known = read_json(path) if path.is_file() else {"versions": metrics["versions"]}
    started = known.pop("started", None)
    settings = {**training_settings(found.config(run)), **evaluation_settings(cfg)}
    return {
        "metrics": values,
        "per_query": per_query_of(run.folder / INFERENCE_FOLDER / found.test_set),
        "params": read_json(run.evaluation)["params"],
        "iterations": cfg.SOLVER.MAX_ITER,
        "started": started,
        "seconds": round(found.records.read(run.name)["seconds"], 1),
        "config_file": f"configs/{run.model}.yaml",
        "config_sha256": config_digest(settings),
        **known,
        "data": {name: data_digest(name) for name in (*cfg.DATASETS.TRAIN, found.test_set)},
    }


def _command(project: Project, seeds: Sequence[int], metrics: dict[str, Any]) -> str:
    """The commands that make the project; of paths the names alone."""
    options = dict(project.options)
    if "preset" in options:
        words = ["kd-search", "demo"]
        words += ["--preset", options["preset"]] if options["preset"] != "demo" else []
        return shlex.join([*words, "--seed", str(options["seed"])])
    words = ["kd-search", "init", project.folder.name]
    for key, value in options.items():
        values = value if isinstance(value, list) else [value]
        shown = [Path(v).name if key in _PATHS or key.endswith("weights") else v for v in values]
        words += [f"--{key.replace('_', '-')}", *map(str, shown)]
    more = ["--terms", *metrics["terms"]] if metrics["terms"] != ["IDTableTerm"] else []
    more += ["--seeds", *map(str, seeds)] if len(seeds) > 1 else []
    second = ["kd-search", "distill", project.folder.name, *more]
    return f"{shlex.join(words)} && {shlex.join(second)}"


def _note(project: Project) -> str:
    if "preset" in project.options:
        return "The schedule of the demo was chosen on these test scenes"
    return ""
