"""``kd-search distill``: the steps from a project to a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode

from kd_search.config import get_cfg
from kd_search.config.files import merge_config_file, merge_overrides
from kd_search.data.person_search.register import load_split
from kd_search.engine.finished_run import WEIGHTS_FILE
from kd_search.pipeline.console import Console, log_to
from kd_search.pipeline.deploy import ENDINGS, calibrate_student, export_student, missing_packages
from kd_search.pipeline.fingerprints import evaluation_settings, training_settings
from kd_search.pipeline.id_table import build_table
from kd_search.pipeline.measure import measure
from kd_search.pipeline.methods import ID_TABLE_TERM, check_terms_fit, method_keys
from kd_search.pipeline.outcome import write_comparisons, write_results
from kd_search.pipeline.own_data import check_data
from kd_search.pipeline.progress import WholeProgress
from kd_search.pipeline.project import DISTILLED, STUDENT, TEACHER, Project
from kd_search.pipeline.steps import Records, Task
from kd_search.pipeline.training import train
from kd_search.utils.files import read_json, write_json

#: Steps, and what they do, in their order. "data" is of generated sets only.
STEPS = {
    "data": "generate the data set",
    "check": "check the data",
    "teacher": "train the teacher",
    "table": "pre-compute the teacher's ID table",
    "student": "train the student without the teacher",
    "student_distilled": "train the student with the teacher",
    "evaluate": "evaluate",
    "compare": "compare the networks query by query",
    "export": "export the distilled student and check the export",
    "calibrate": "find the similarities to trust",
    "report": "write metrics.json and report.html",
}
_MODELS = (TEACHER, STUDENT, DISTILLED)


@dataclass(frozen=True)
class ModelRun:
    """One training."""

    #: "teacher", "student" or "student_distilled".
    model: str
    seed: int
    folder: Path
    #: Of its tasks.
    name: str

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_FILE

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"


class Distillation:
    """The tasks of a project."""

    def __init__(
        self,
        project: Project,
        opts: Sequence[Any] = (),
        *,
        terms: Sequence[str] = (),
        seeds: Sequence[int] = (),
        imports: Sequence[str] = (),
        console: Optional[Console] = None,
    ):
        """
        Args:
            project: with its configs.
            opts: KEY VALUE overrides of all three networks.
            terms: of the distilled student; empty: those of its config. Other terms get a folder
                of their own.
            seeds: of the students; empty: ``SEED`` of the config. The teacher has that of its
                config. Others than that of the config get a folder of their own.
            imports: modules that were imported for these configs.
            console: prints the progress.

        Raises:
            FileNotFoundError, ValueError: a config is missing, or has an unknown key or value.
        """
        self.project, self.opts = project, [str(opt) for opt in opts]
        self.imports = list(imports)
        self.console = console or Console()
        self.records = Records(project.folder, say=self.console.line)
        self._configs: dict[tuple[ModelRun, bool], CfgNode] = {}
        self._plain = {model: self._read(model) for model in _MODELS}
        own_terms = list(self._plain[DISTILLED].DISTILLATION.TERMS)
        self.terms = list(terms) or own_terms
        own_seed = self._plain[STUDENT].SEED
        self.seeds = list(dict.fromkeys(seeds)) or [own_seed]
        taught = DISTILLED if self.terms == own_terms else f"student_{'+'.join(self.terms)}"
        folder = project.folder
        self.teacher = ModelRun(TEACHER, self._plain[TEACHER].SEED, folder / TEACHER, TEACHER)
        self.students: dict[str, list[ModelRun]] = {}
        for model, name in ((STUDENT, STUDENT), (DISTILLED, taught)):
            self.students[model] = [
                ModelRun(model, seed, folder / name, name)
                if seed == own_seed
                else ModelRun(model, seed, folder / f"seed{seed}" / name, f"{name}.seed{seed}")
                for seed in self.seeds
            ]
        #: Runs of every model.
        self.runs_of = {TEACHER: [self.teacher], **self.students}
        self.runs = [run for runs in self.runs_of.values() for run in runs]
        self.table = folder / "id_table.pth"
        self.comparisons = folder / "comparisons.json"
        #: What :func:`.export_student` and :func:`.calibrate_student` return.
        self.exported, self.calibration = folder / "export.json", folder / "calibration.json"
        self.tasks = {task.name: task for task in self._tasks()}
        self.progress = WholeProgress(list(self.tasks.values()), self.console)

    @property
    def steps(self) -> list[str]:
        """Steps that this project has."""
        own = {task.step for task in self.tasks.values()}
        return [step for step in STEPS if step in own]

    def check_terms(self) -> None:
        """Raise ValueError if the terms do not fit; the data must exist."""
        taught = self.students[DISTILLED][0]
        check_terms_fit(self.config(taught), self.config(self.teacher))

    def config(self, run: ModelRun, *, eval_only: bool = False) -> CfgNode:
        """The frozen config of a run."""
        if (run, eval_only) not in self._configs:
            self._configs[run, eval_only] = self._merge(run, eval_only)
        return self._configs[run, eval_only]

    def _merge(self, run: ModelRun, eval_only: bool) -> CfgNode:
        opts: list[Any] = [*self.opts]
        if run.model != TEACHER:
            opts += ["SEED", run.seed]
        if run.model == DISTILLED:
            teacher = self.teacher.folder / "config.yaml"
            files = (str(self.table), str(teacher), str(self.teacher.weights))
            opts += method_keys(self.terms, *files)
        return self.project.config(run.model, run.folder, opts, eval_only=eval_only)

    # ------------------------------------------------------------------------------------- tasks

    def _tasks(self) -> list[Task]:
        tasks = [self._task("data", self._generate, self._preset)] if self._preset() else []
        tasks += [self._task("check", self._check, self._data_settings)]
        tasks += [self._training(self.teacher)]
        if ID_TABLE_TERM in self.terms:
            tasks.append(
                self._task("table", self._build_table, self._table_settings, [TEACHER], self.table)
            )
        for model in (STUDENT, DISTILLED):
            tasks += [self._training(run) for run in self.students[model]]
        for run in self.runs:
            name = f"evaluate.{run.name}"
            task = self._task(
                "evaluate",
                partial(self._evaluate, run),
                partial(self._evaluation_settings, run),
                [run.name],
                run.evaluation,
                name=name,
            )
            task.what = f"evaluate {run.name}"
            tasks.append(task)
        evaluated = [f"evaluate.{run.name}" for run in self.runs]
        taught = self.students[DISTILLED][0]
        export = self._task("export", self._export, self._export_settings, [taught.name])
        export.outputs = self._exported_files
        needs = [f"evaluate.{taught.name}", "export"]
        report = self.project.folder / "report.html"
        texts = {"title": self.project.title, "intro": self.project.intro}
        made = ["compare", "export", "calibrate"]
        return [
            *tasks,
            self._task("compare", self._compare, dict, evaluated, self.comparisons),
            export,
            self._task("calibrate", self._calibrate, dict, needs, self.calibration),
            self._task("report", self._report, lambda: texts, made, report),
        ]

    @staticmethod
    def _task(
        step: str,
        run: Callable[[], Any],
        settings: Callable[[], Mapping[str, str]],
        needs: Sequence[str] = (),
        *outputs: Path,
        name: str = "",
    ) -> Task:
        return Task(name or step, step, STEPS[step], run, settings, needs, outputs)

    def _training(self, run: ModelRun) -> Task:
        needs: list[str] = []
        if run.model == DISTILLED:
            needs = ["table"] if ID_TABLE_TERM in self.terms else []
            needs += [TEACHER] if set(self.terms) != {ID_TABLE_TERM} else []
        seed = f", seed {run.seed}" if len(self.seeds) > 1 and run.model != TEACHER else ""
        return Task(
            run.name,
            run.model,
            STEPS[run.model] + seed,
            partial(self._train, run),
            lambda: training_settings(self.config(run)),
            needs,
            [run.weights],
            keeps=run.folder,
            iterations=self._plain[run.model].SOLVER.MAX_ITER,
        )

    def _preset(self) -> dict[str, str]:
        options = self.project.options
        return {key: str(options[key]) for key in ("preset", "seed") if "preset" in options}

    def _generate(self) -> None:
        try:
            from kd_search.synthetic import PRESETS, generate_dataset
        except ImportError as error:
            raise ValueError(
                f"generated pictures need OpenCV: pip install opencv-python-headless ({error})"
            ) from None
        options = self.project.options
        generate_dataset(
            self.project.folder / "data",
            PRESETS[options["preset"]],
            seed=options["seed"],
            progress=self.console.verbose,
        )

    def _data_settings(self) -> dict[str, str]:
        return {
            key: value
            for model in (training_settings, evaluation_settings)
            for key, value in model(self.config(self.teacher)).items()
            if key.startswith("data ")
        }

    def _check(self) -> None:
        cfg = self.config(self.teacher)
        sets = [
            load_split(names[0], clip=False) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        ]
        check_data(*sets, max_pixels=cfg.INPUT.MAX_IMAGE_PIXELS, say=self.console.line)

    def _train(self, run: ModelRun) -> None:
        with log_to(run.folder / "log.txt"):
            train(self.config(run), self.progress.hook(run.name), self.imports)

    def _table_settings(self) -> dict[str, str]:
        cfg = self.config(self.teacher)
        return {
            "source": "mean",
            "INPUT.MIN_SIZE_TEST": str(cfg.INPUT.MIN_SIZE_TEST),
            "INPUT.MAX_SIZE_TEST": str(cfg.INPUT.MAX_SIZE_TEST),
        }

    def _build_table(self) -> None:
        build_table(self.config(self.teacher), str(self.teacher.weights)).save(str(self.table))

    def _evaluation_settings(self, run: ModelRun) -> dict[str, str]:
        return evaluation_settings(self.config(run, eval_only=True))

    def _evaluate(self, run: ModelRun) -> None:
        with log_to(run.folder / "log.txt"):
            write_json(run.evaluation, measure(self.config(run, eval_only=True), run.weights))

    def _compare(self) -> None:
        write_comparisons(self, self.comparisons)

    def _export_settings(self) -> dict[str, str]:
        # A file that was made where the packages are installed is kept where they are not.
        there = self._exported_files()
        ready = not missing_packages() or any(path.suffix == ENDINGS["onnx"] for path in there)
        return {"formats": "onnx, torchscript" if ready else "torchscript"}

    def _exported_files(self) -> list[Path]:
        if not self.exported.is_file():
            return [self.exported]
        names = read_json(self.exported)["files"].values()
        return [self.exported, *(self.project.folder / name for name in names)]

    def _export(self) -> None:
        run, folder = self.students[DISTILLED][0], self.project.folder
        stem = folder / run.folder.name
        cfg = self.config(run, eval_only=True)
        record = export_student(cfg, run.weights, stem, self.console.line)
        write_json(self.exported, record)

    def _calibrate(self) -> None:
        run = self.students[DISTILLED][0]
        name = read_json(self.exported)["files"].get("onnx")
        model = self.project.folder / name if name else None
        cfg = self.config(run, eval_only=True)
        found = calibrate_student(cfg, run.folder, model, self.console.line)
        write_json(self.calibration, found)

    def _report(self) -> None:
        write_results(self)

    # ------------------------------------------------------------------------------------- words

    def describe(self, run: ModelRun) -> str:
        """Settings of a training in one line."""
        cfg = self._plain[run.model]
        sizes = "/".join(map(str, cfg.INPUT.MIN_SIZE_TRAIN))
        start = cfg.MODEL.WEIGHTS or cfg.MODEL.TORCHVISION.WEIGHTS
        weights = f"from {start}" if start else "from scratch"
        taught = f", terms {', '.join(self.terms)}" if run.model == DISTILLED else ""
        return (
            f"{self.project.config_file(run.model)}: {cfg.SOLVER.MAX_ITER} iterations of "
            f"{cfg.SOLVER.IMS_PER_BATCH} pictures of {sizes} pixels, {cfg.SOLVER.OPTIMIZER} "
            f"{cfg.SOLVER.BASE_LR:g}, seed {run.seed}, {weights}{taught}"
        )

    @property
    def test_set(self) -> str:
        """Name of the test set."""
        name: str = self._plain[TEACHER].DATASETS.TEST[0]
        return name

    def _read(self, model: str) -> CfgNode:
        """A config without what depends on the data, which may not exist yet."""
        cfg = get_cfg()
        merge_config_file(cfg, str(self.project.config_file(model)))
        merge_overrides(cfg, self.opts)
        return cfg


def mark_checked(project: Project) -> None:
    """Record that the data of a project were checked."""
    distillation = Distillation(project)
    distillation.records.mark_done(distillation.tasks["check"])
