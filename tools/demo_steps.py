"""The steps of the demo. Each can be interrupted at any point and run again."""

import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import detectron2
import numpy as np
import torch
import torchvision
from detectron2.data import DatasetCatalog

import kd_search
from kd_search.checkpoint import load_trained
from kd_search.data import build_person_search_test_loader
from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.evaluation.search.compare_runs import load_results
from kd_search.evaluation.search.experiment import (
    DISTILLED,
    PLAIN,
    TEACHER,
    TrainedModel,
    TrainedRun,
)
from kd_search.export import export_torchscript
from kd_search.pipeline import build_table
from kd_search.synthetic import PRESETS, generate_dataset
from kd_search.utils.files import write_json
from kd_search.visualization import findings, latency_statement, write_report

DEFAULT_SEED = 1
#: Folder of a model to its name and role in the report.
MODELS = {
    "teacher": ("Teacher", TEACHER),
    "student": ("Plain student", PLAIN),
    "student_distilled": ("Distilled student", DISTILLED),
}
CONFIGS = {
    "teacher": "configs/generated/teacher_r18_fpn.yaml",
    "student": "configs/generated/student_r18w50_fpn.yaml",
    "student_distilled": "projects/PersonSearchKD/configs/generated/"
    "student_r18w50_fpn_id_table.yaml",
}
#: Overrides that make every network and schedule small enough for a test.
TINY = (
    *("SOLVER.MAX_ITER", 6, "SOLVER.STEPS", (4,), "SOLVER.CHECKPOINT_PERIOD", 2),
    *("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.REID_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
)
TIMED_IMAGES = 30


class Demo:
    """One run of the demo in one folder."""

    def __init__(self, output: Path, seed: int = DEFAULT_SEED, preset: str = "demo"):
        """
        Args:
            output: folder of this run, created if absent.
            seed: of data and networks.
            preset: "demo", or "tiny" for tests.

        Raises:
            ValueError: the folder holds a run with other settings.
        """
        self.output = output
        self.seed = seed
        self.preset = preset
        settings = {"seed": seed, "preset": preset, "kd_search": kd_search.__version__}
        known = self._read("settings.json")
        if known not in (None, settings):
            raise ValueError(
                f"{output} holds a run with {known}, not {settings}: remove it or name another "
                "folder with --output"
            )
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "settings.json", settings)
        os.environ["KD_SEARCH_GENERATED"] = str(output / "data")

    def is_done(self, step: str) -> bool:
        return (self.output / "done" / step).exists()

    def run(self, step: str) -> None:
        """Run one step to its end, or until it is interrupted."""
        with self._timed(step):
            getattr(self, f"_{step}")()
        (self.output / "done").mkdir(exist_ok=True)
        (self.output / "done" / step).touch()

    # ------------------------------------------------------------------------------------- steps

    def _data(self) -> None:
        generate_dataset(self.output / "data", PRESETS[self.preset], seed=self.seed)

    def _teacher(self) -> None:
        self._train("teacher")

    def _table(self) -> None:
        weights = self._folder("teacher") / "model_final.pth"
        table = build_table(self._config("teacher"), str(weights), "mean")
        table.save(self._table_path)

    def _student(self) -> None:
        self._train("student")

    def _student_distilled(self) -> None:
        self._train("student_distilled")

    def _evaluate(self) -> None:
        for name in MODELS:
            if self._read(f"{name}/evaluation.json") is None:
                print(f"evaluating {name}", flush=True)
                write_json(self._folder(name) / "evaluation.json", self._measure(name))

    def _export(self) -> None:
        cfg = self._config("student_distilled", eval_only=True)
        model = self._load("student_distilled", cfg)
        loader = build_person_search_test_loader(cfg, cfg.DATASETS.TEST[0])
        images = [batch[0]["image"] for batch, _ in zip(loader, range(4))]
        # A picture without people, and one of another size: the export must hold no fixed size.
        images += [torch.full_like(images[0], 114), images[0][:, :150, :250].contiguous()]
        report = export_torchscript(
            model, self.output / "student_distilled.ts", cfg=cfg, check_images=images
        )
        write_json(self.output / "export_parity.json", report)
        print(f"largest difference: {report['max_difference']}", flush=True)

    def _report(self) -> None:
        metrics = {name: self._read(f"{name}/evaluation.json") for name in MODELS}
        metrics["seconds"] = {k: round(v, 1) for k, v in self._read("seconds.json").items()}
        metrics["versions"] = _versions()
        metrics["seed"] = self.seed
        write_json(self.output / "metrics.json", metrics)
        write_report(
            self.output / "report.html",
            "Person search: distillation by ID table",
            self._models(),
            DatasetCatalog.get(self._test_set),
            intro="A teacher, a small student, and the same student taught by the teacher's table "
            "of identities (Munjal et al., BMVC 2019), on generated street scenes.",
            settings={
                "data": f"generated, preset {self.preset}",
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
                **metrics["versions"],
            },
            seconds=metrics["seconds"],
        )

    # ----------------------------------------------------------------------------------- helpers

    def summary(self) -> str:
        metrics = self._read("metrics.json")
        columns = ("mAP", "top1", "top5", "top10", "det_AP", "det_recall")
        lines = [" " * 18 + "".join(f"{c:>11}" for c in (*columns, "params", "ms"))]
        for name in MODELS:
            row = metrics[name]
            values = "".join(f"{row[c]:>11.1f}" for c in columns)
            lines.append(f"{name:18}{values}{row['params']:>11,}{row['latency_ms']:>11.1f}")
        models = self._models()
        lines += findings(models)
        if unstable := latency_statement(models):
            lines.append(unstable)
        lines.append(f"report: {self.output / 'report.html'}")
        return "\n".join(lines)

    @property
    def _table_path(self) -> str:
        return str(self.output / "id_table.pth")

    def _folder(self, name: str) -> Path:
        return self.output / name

    def _config(self, name: str, eval_only: bool = False):
        overrides: list[Any] = ["OUTPUT_DIR", str(self._folder(name)), "SEED", self.seed]
        if name == "student_distilled":
            overrides += ["DISTILLATION.ID_TABLE.PATH", self._table_path]
        if self.preset == "tiny":
            overrides += TINY
        return build_config(CONFIGS[name], overrides, eval_only=eval_only)

    def _train(self, name: str) -> None:
        cfg = self._config(name)
        cfg.defrost()
        # Evaluation is a step of its own.
        cfg.DATASETS.TEST = ()
        cfg.freeze()
        self._folder(name).mkdir(exist_ok=True)
        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()

    def _load(self, name: str, cfg) -> torch.nn.Module:
        model = PersonSearchTrainer.build_model(cfg).eval()
        load_trained(model, str(self._folder(name) / "model_final.pth"))
        return model

    def _measure(self, name: str) -> dict:
        cfg = self._config(name, eval_only=True)
        model = self._load(name, cfg)
        results = PersonSearchTrainer.test(cfg, model)
        search, detection = results["person_search"], results["detection"]
        return {
            **{key: search[key] for key in ("mAP", "top1", "top5", "top10")},
            "det_AP": detection["AP"],
            "det_recall": detection["recall"],
            "params": sum(p.numel() for p in model.parameters()),
            **_latency(model, cfg),
        }

    @property
    def _test_set(self) -> str:
        return self._config("teacher").DATASETS.TEST[0]

    def _models(self) -> list[TrainedModel]:
        models = []
        for key, (name, role) in MODELS.items():
            results = load_results(self._folder(key) / "inference" / self._test_set)
            run = TrainedRun(self.seed, results, self._folder(key) / "metrics.json")
            row = self._read(f"{key}/evaluation.json")
            first, third = row["latency_quartiles_ms"]
            latency = (first, row["latency_ms"], third)
            models.append(TrainedModel(name, role, [run], row["params"], latency))
        return models

    def _read(self, name: str):
        path = self.output / name
        return json.loads(path.read_text()) if path.exists() else None

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        """Add the time of this step, also of an interrupted attempt, to seconds.json."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self._read("seconds.json") or {}
            seconds[step] = seconds.get(step, 0.0) + time.monotonic() - start
            write_json(self.output / "seconds.json", seconds)


def _latency(model: torch.nn.Module, cfg) -> dict:
    """Median and quartiles of the time to search one test image, after a few to warm up."""
    loader = build_person_search_test_loader(cfg, cfg.DATASETS.TEST[0])
    times = []
    with torch.no_grad():
        for batch, _ in zip(loader, range(TIMED_IMAGES)):
            inputs = [{k: v for k, v in x.items() if k != "query_boxes"} for x in batch]
            start = time.perf_counter()
            model(inputs)
            times.append(1000 * (time.perf_counter() - start))
    times = times[min(3, len(times) - 2) :]
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return {"latency_ms": median, "latency_quartiles_ms": [first, third]}


def _versions() -> dict[str, str]:
    return {
        "kd_search": kd_search.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
