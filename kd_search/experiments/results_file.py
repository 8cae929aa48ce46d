"""The results file of a study: one JSON file with every run, from which documents are made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

from pydantic import AfterValidator, model_validator

from kd_search.experiments.run_facts import shown_metrics, unpack_queries
from kd_search.experiments.table import TableLayout, summarise
from kd_search.utils.files import read_json, write_json
from kd_search.utils.schema import Count, NonNegative, Schema, check_schema

FORMAT = 1
#: What runs of one study usually share: written once, and referred to by number.
_SHARED = ("versions", "hardware", "code", "data")

Metrics = dict[str, Optional[float]]


def _is_packed(value: dict[str, str]) -> dict[str, str]:
    if not {"queries", "ap"} <= value.keys():
        raise ValueError("has not both queries and ap")
    try:
        unpack_queries(value)
    except ValueError as error:
        raise ValueError(f"holds wrong values: {error}") from None
    return value


class _Environment(Schema):
    versions: dict[str, str] = {}
    hardware: Optional[dict[str, Any]] = None
    code: Optional[dict[str, Any]] = None
    data: dict[str, dict[str, Any]] = {}


class RunRecord(Schema):
    """One run. What an older version did not record is ``None`` or empty."""

    row: str = ""
    seed: Optional[int] = None
    metrics: Metrics
    train_metrics: Metrics = {}
    per_query: dict[str, Annotated[dict[str, str], AfterValidator(_is_packed)]] = {}
    params: Optional[Count] = None
    iterations: Optional[Count] = None
    seconds_per_iteration: Optional[NonNegative] = None
    #: Processor milliseconds for a test picture.
    test_ms: Optional[NonNegative] = None
    #: UTC; with ``seconds`` that of the last start, at iteration ``resumed``.
    started: Optional[str] = None
    seconds: Optional[NonNegative] = None
    resumed: Optional[Count] = None
    config_file: Optional[str] = None
    #: KEY VALUE overrides; OUTPUT stands for the folder of the study, $NAME for that of a data set.
    opts: list[str] = []
    config_sha256: Optional[str] = None
    #: Index in ``environments``.
    environment: Optional[Count] = None


class Candidate(Schema):
    """One setting that was tried on the validation part of the training set."""

    row: str
    overrides: dict[str, Any]
    #: Seed to the metric on the validation part.
    scores: dict[str, float]
    chosen: bool
    #: Of a row that was added to the study, instead of that of the protocol.
    recorded: Optional[str] = None


class ProtocolRecord(Schema):
    """How the settings were chosen, recorded before the test set was evaluated."""

    recorded: str
    #: False: the settings of the configs, whatever these were chosen on.
    tuned: bool
    metric: Optional[str] = None
    validation: dict[str, Any] = {}
    candidates: list[Candidate] = []

    @model_validator(mode="after")
    def _same_budget(self) -> "ProtocolRecord":
        trials: dict[str, int] = {}
        chosen: dict[str, int] = {}
        for candidate in self.candidates:
            trials[candidate.row] = trials.get(candidate.row, 0) + len(candidate.scores)
            chosen[candidate.row] = chosen.get(candidate.row, 0) + candidate.chosen
        if len(set(trials.values())) > 1:
            raise ValueError(f"has rows with different numbers of trials, {trials}")
        if any(count != 1 for count in chosen.values()):
            raise ValueError("has a row without exactly one chosen candidate")
        return self


class _Layout(Schema):
    metrics: list[str]
    base: str
    paper: list[str] = []
    stem: str = "ablation"


class _RowRecord(Schema):
    name: str
    paper: list[float] = []
    main: bool = False


class StudyFile(Schema):
    """Content of a results file."""

    format: Count
    command: str
    dataset: str
    #: What one should know about the runs; none for runs of the current version.
    note: str = ""
    layout: _Layout
    rows: list[_RowRecord]
    environments: list[_Environment] = []
    protocol: Optional[ProtocolRecord] = None
    teachers: dict[str, RunRecord] = {}
    runs: list[RunRecord]

    @model_validator(mode="after")
    def _agrees(self) -> "StudyFile":
        if self.format != FORMAT:
            raise ValueError(
                f"has format {self.format}, and this version of kd_search reads {FORMAT}"
            )
        names, seen = {row.name for row in self.rows}, set()
        recorded: dict[str, str] = {}
        if self.protocol:
            candidates = self.protocol.candidates
            # A row without candidates beside others that have some is that of a teacher, about
            # which nothing was chosen: another study may have tested it.
            rows = {candidate.row for candidate in candidates} or names
            recorded = dict.fromkeys(rows, self.protocol.recorded)
            for candidate in candidates:
                # The last of a row's candidates, in whatever order they stand.
                times = recorded[candidate.row], candidate.recorded or ""
                recorded[candidate.row] = max(times)
        for number, run in enumerate(self.runs):
            if run.row not in names or run.seed is None:
                raise ValueError(f"runs[{number}] has the row {run.row!r} and seed {run.seed}")
            if (run.row, run.seed) in seen:
                raise ValueError(f"runs[{number}] is the second of {run.row!r}, seed {run.seed}")
            seen.add((run.row, run.seed))
            if run.started is not None and run.started < recorded.get(run.row, ""):
                raise ValueError(f"runs[{number}] started before the choices were recorded")
        for run in [*self.runs, *self.teachers.values()]:
            if run.environment is not None and run.environment >= len(self.environments):
                raise ValueError(f"has a run with environment {run.environment}, of which is none")
        return self

    def table_layout(self) -> TableLayout:
        """Metrics, base and columns of the table."""
        layout = self.layout
        return TableLayout(tuple(layout.metrics), layout.base, tuple(layout.paper), layout.stem)

    def table(self, rows: Sequence[str] = (), *, on_train: bool = False) -> list[dict[str, Any]]:
        """Entries of :func:`.table.summarise`, of some rows and teachers or of all."""
        key = "train_metrics" if on_train else "metrics"

        def numbers(run: RunRecord) -> dict[str, float]:
            return shown_metrics(dict(run), key)

        runs = {(run.row, run.seed): run for run in self.runs if run.seed is not None}
        teachers = {name: numbers(run) for name, run in self.teachers.items()}
        paper = {row.name: row.paper for row in self.rows}
        table = summarise(
            paper,
            {k: numbers(run) for k, run in runs.items() if numbers(run)},
            {name: metrics for name, metrics in teachers.items() if metrics},
            self.table_layout(),
            paper,
            per_query={} if on_train else {k: run.per_query for k, run in runs.items()},
        )
        return [entry for entry in table if not rows or entry["row"] in rows]


def read_study(path: Path) -> StudyFile:
    """Read and check a results file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, was edited, or a field is wrong; one line that names both.
    """
    content = read_json(path, "results file", sealed=True)
    return check_schema(content, StudyFile, path)


def write_study(path: Path, content: Mapping[str, Any]) -> None:
    """Write a results file; its content is checked as in :func:`read_study`."""
    check_schema(json.loads(json.dumps(content)), StudyFile, path)
    write_json(path, dict(content), sealed=True)


def write_measured(
    path: Path,
    command: str,
    dataset: str,
    layout: TableLayout,
    rows: Sequence[str],
    runs: Sequence[dict[str, Any]],
    note: str = "",
) -> None:
    """Write a results file of trained networks that were measured in another way.

    Args:
        path: of the file.
        command: that measures them again, see :func:`.study_options.recorded_command`.
        dataset: they were measured on.
        layout: of the table.
        rows: names, in order.
        runs: each as :class:`RunRecord` with ``started``, and with what
            :func:`.run_facts.environment_of` returns; changed in place.
        note: what one should know about them.

    Raises:
        ValueError: see :func:`read_study`.
    """
    # Nothing is chosen in such a study.
    protocol = {"recorded": min(run["started"] for run in runs), "tuned": False}
    content = {
        "format": FORMAT,
        "command": command,
        "dataset": dataset,
        "note": note,
        "layout": {"metrics": list(layout.metrics), "base": layout.base, "stem": layout.stem},
        "rows": [{"name": name} for name in rows],
        "environments": share_environments(runs),
        "protocol": protocol,
        "runs": list(runs),
    }
    write_study(path, content)


def recorded_runs(path: Optional[Path]) -> tuple[dict[str, Any], dict[tuple[str, int], Any]]:
    """Teachers by name and runs by (row, seed) of a results file, in the form of
    :func:`.run_folder.train_and_evaluate`; nothing where there is no file.

    Raises:
        ValueError: see :func:`read_study`.
    """
    if path is None or not path.is_file():
        return {}, {}
    content = read_study(path).model_dump(exclude_unset=True)

    def whole(run: dict[str, Any]) -> dict[str, Any]:
        number = run.pop("environment", None)
        return {**run, **({} if number is None else content["environments"][number])}

    teachers = {name: whole(run) for name, run in content.get("teachers", {}).items()}
    return teachers, {(run["row"], run["seed"]): whole(run) for run in content["runs"]}


def share_environments(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move versions, hardware, code and data of runs, in place, to a list of different ones that
    their ``environment`` is an index of; returns the list."""
    environments: list[dict[str, Any]] = []
    for run in runs:
        own = {key: run.pop(key) for key in _SHARED if key in run}
        if not own:
            continue
        if own not in environments:
            environments.append(own)
        run["environment"] = environments.index(own)
    return environments
