"""What a project found: its networks on the test set, in a report, in JSON and in words."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from detectron2.data import DatasetCatalog

from kd_search.evaluation.search import experiment
from kd_search.evaluation.search.compare_runs import INFERENCE_FOLDER, load_results
from kd_search.evaluation.search.experiment import TrainedModel, TrainedRun, comparisons_of
from kd_search.pipeline.measure import versions
from kd_search.pipeline.project import DISTILLED, STUDENT, TEACHER
from kd_search.utils.files import read_json, write_json
from kd_search.visualization import findings, latency_statement, write_report
from kd_search.visualization.deployment import Deployment

if TYPE_CHECKING:
    from kd_search.pipeline.distill import Distillation

_NAMES = {
    TEACHER: ("Teacher", experiment.TEACHER),
    STUDENT: ("Plain student", experiment.PLAIN),
    DISTILLED: ("Distilled student", experiment.DISTILLED),
}
_COLUMNS = ("mAP", "top1", "top5", "top10", "det_AP", "det_recall")


def trained_models(project: "Distillation") -> list[TrainedModel]:
    """The evaluated networks."""
    models = []
    for model, runs in project.runs_of.items():
        name, role = _NAMES[model]
        trained = [
            TrainedRun(
                run.seed,
                load_results(run.folder / INFERENCE_FOLDER / project.test_set),
                run.folder / "metrics.json",
            )
            for run in runs
        ]
        row = read_json(runs[0].evaluation)
        first, third = row["latency_quartiles_ms"]
        latency = (first, row["latency_ms"], third)
        models.append(TrainedModel(name, role, trained, row["params"], latency))
    return models


def write_comparisons(project: "Distillation", path: Path) -> None:
    """Write the paired comparisons of the networks."""
    rows = [
        {
            "baseline": comparison.baseline.name,
            "model": comparison.model.name,
            "unit": "percent AP",
            **asdict(comparison.result),
            "by_seed": {seed: asdict(own) for seed, own in comparison.by_seed.items()},
        }
        for comparison in comparisons_of(trained_models(project))
    ]
    write_json(path, rows)


def write_results(project: "Distillation") -> None:
    """Write ``metrics.json`` and ``report.html``."""
    folder = project.project.folder
    seconds = project.records.seconds(list(project.tasks.values()))
    metrics: dict[str, Any] = {
        model: read_json(runs[0].evaluation) for model, runs in project.runs_of.items()
    }
    metrics["seconds"] = {step: round(value, 1) for step, value in seconds.items()}
    metrics["versions"] = versions()
    metrics["seed"] = project.students[STUDENT][0].seed
    metrics["terms"] = project.terms
    metrics["comparisons"] = read_json(project.comparisons)
    if len(project.seeds) > 1:
        metrics["seeds"] = {
            model: {run.seed: read_json(run.evaluation) for run in runs}
            for model, runs in project.students.items()
        }
    write_json(folder / "metrics.json", metrics)
    write_report(
        folder / "report.html",
        project.project.title,
        trained_models(project),
        DatasetCatalog.get(project.test_set),
        intro=project.project.intro,
        settings={
            "training set": ", ".join(project.config(project.teacher).DATASETS.TRAIN),
            "test set": project.test_set,
            "terms": ", ".join(project.terms),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            **metrics["versions"],
        },
        seconds=metrics["seconds"],
        deployment=_deployment(project),
    )


def _deployment(project: "Distillation") -> Deployment:
    exported, calibration = read_json(project.exported), read_json(project.calibration)
    folder = project.project.folder
    files = {
        form: (name, (folder / name).stat().st_size) for form, name in exported["files"].items()
    }
    return Deployment(files, exported["left_out"], calibration)


def summary(project: "Distillation") -> str:
    """The results as a table, and what they mean."""
    width = max(len(run.name) for run in project.runs)
    lines = [" " * width + "".join(f"{c:>11}" for c in (*_COLUMNS, "params", "ms"))]
    for run in project.runs:
        row = read_json(run.evaluation)
        values = "".join(f"{row[c]:>11.1f}" if c in row else f"{'-':>11}" for c in _COLUMNS)
        lines.append(f"{run.name:{width}}{values}{row['params']:>11,}{row['latency_ms']:>11.1f}")
    models = trained_models(project)
    lines += findings(models)
    if unstable := latency_statement(models):
        lines.append(unstable)
    deployment, folder = _deployment(project), project.project.folder
    lines += [f"exported student: {folder / name}" for name, _ in deployment.files.values()]
    lines += deployment.sentences()
    lines.append(f"report: {folder / 'report.html'}")
    return "\n".join(lines)
