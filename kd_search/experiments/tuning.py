"""Settings are chosen on people and frames split off the training set, before anything is tested.

Every row of a study, also the student without a teacher, gets the same number of candidates. They
are trained on the rest of the training set, with teachers of their own that have not seen the
validation people either, and the best one by the first metric of the table, on average over the
tuning seeds, is the row's. The study then trains on the whole training set. Rows that are added
later are compared then, before any of them is tested.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import yaml

from kd_search.data.person_search.held_out import hold_out_people, write_queries_of
from kd_search.data.person_search.register import SplitFiles, locate_split
from kd_search.data.reid import get_reid_samples, is_reid, register_named_parts
from kd_search.experiments.results_file import read_study, recorded_runs
from kd_search.experiments.run_facts import data_digest
from kd_search.experiments.run_folder import RESULT_FILE, build_run_config, now
from kd_search.experiments.runs import Run, RunFailed, run_all
from kd_search.utils.files import file_sha256

if TYPE_CHECKING:
    from kd_search.experiments.study import Study

#: Of the people and frames that are split off, the same in all studies.
SPLIT_SEED = 0
_CROPS = "_crops"


def read_candidates(path: Path, rows: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Candidates of each row from a YAML file; see :class:`.study_options.StudyParser`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another structure, names an unknown row, or does not give each row the
            same number; one line that names the file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"--candidates: there is no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not content.keys() <= {"default", "rows"}:
        raise ValueError(f"{path}: the keys must be default and rows")
    own = content.get("rows") or {}
    if not isinstance(own, dict):
        raise ValueError(f"{path}: rows must be lists of candidates by row")
    for row in own:
        if row not in rows:
            raise ValueError(f"{path}: rows: {row!r} is none of {', '.join(rows)}")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        candidates = own.get(row, content.get("default"))
        if not isinstance(candidates, list) or not candidates:
            raise ValueError(f"{path}: row {row!r} has no list of candidates, nor has default")
        for number, candidate in enumerate(candidates):
            if not isinstance(candidate, dict) or not all(isinstance(k, str) for k in candidate):
                raise ValueError(f"{path}: {row!r}[{number}] is no KEY: VALUE mapping")
        found[row] = candidates
    numbers = {row: len(candidates) for row, candidates in found.items()}
    if len(set(numbers.values())) > 1:
        raise ValueError(
            f"{path}: each row must have the same number of candidates, not "
            + ", ".join(f"{count} for {row}" for row, count in numbers.items())
        )
    return found


def recorded_protocol(study: "Study") -> Optional[dict[str, Any]]:
    """What an earlier start of a study has recorded; ``None`` where it has recorded nothing."""
    paths = [study.results_file, *([study.args.results] if study.args.results else [])]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    protocol = read_study(path).protocol
    # As it was written: the file stays the same.
    return None if protocol is None else protocol.model_dump(exclude_unset=True)


def finished_study(
    make_study: Callable[[argparse.Namespace], "Study"], args: argparse.Namespace
) -> "Study":
    """The study with the settings that an earlier start has chosen, for what reads trained runs.

    ``args.protocol`` is set to what that start has recorded.
    """
    study = make_study(args)
    args.protocol = recorded_protocol(study)
    args.tuned = _chosen(args.protocol)
    return make_study(args) if args.tuned else study


def _chosen(protocol: Optional[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Overrides by row."""
    if protocol is None or not protocol["tuned"]:
        return {}
    return {c["row"]: c["overrides"] for c in protocol["candidates"] if c["chosen"]}


def choose_settings(
    make_study: Callable[[argparse.Namespace], "Study"], args: argparse.Namespace, study: "Study"
) -> "Study":
    """Choose the settings of ``--candidates``, and set ``args.protocol`` to what is to be recorded.

    Returns:
        the study with the chosen settings; without candidates, the study that was given.

    Raises:
        ValueError: the test set was evaluated before, with other choices or none; or the
            candidates or the training set are wrong.
        RunFailed: a training failed.
    """
    before = recorded_protocol(study)
    if args.candidates is None:
        if before is None:
            # With whatever settings. Studies share teachers, which have no choices.
            fixed = {row.name for row in study.rows if row.fixed}
            tested = any(
                (run.folder / RESULT_FILE).is_file()
                for (row, _), run in study.runs.items()
                if row not in fixed
            )
            # Of what was tested before the choices were recorded, nobody knows.
            args.protocol = None if tested else {"recorded": now(), "tuned": False}
            return study
        if before["tuned"]:
            raise ValueError(
                f"{study.results_file}: the settings were chosen with --candidates: name the file "
                "again, or another folder with --output"
            )
        args.protocol = before
        return study
    rows = [row.name for row in study.rows if not row.fixed]
    candidates = read_candidates(args.candidates, rows)
    tried = _tried(before) if before is not None and before["tuned"] else {}
    if any(tried.get(row, options) != options for row, options in candidates.items()):
        tried = {}
    new = {row: options for row, options in candidates.items() if row not in tried}
    # A teacher has no candidates: that it was tested says nothing about them.
    seen = {row for (row, _), run in study.runs.items() if (run.folder / RESULT_FILE).is_file()}
    seen |= {row for row, _ in recorded_runs(args.results)[1]}
    if seen & new.keys():
        raise ValueError(
            f"{study.results_file}: the test set was evaluated before these candidates were "
            "compared: name another folder with --output, and another file with --results"
        )
    args.protocol = before
    if new:
        found = _tune(make_study, args, study, new)
        args.protocol = _added(study, before, found) if before is not None and tried else found
    args.tuned = _chosen(args.protocol)
    return make_study(args)


def _added(study: "Study", before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The protocol of a study with that of further rows."""
    for key in ("metric", "validation"):
        if before[key] != found[key]:
            raise ValueError(
                f"{study.results_file}: the first rows were compared with {key} {before[key]}, not "
                f"{found[key]}: name another folder with --output"
            )
    later = [{**candidate, "recorded": found["recorded"]} for candidate in found["candidates"]]
    return {**before, "candidates": [*before["candidates"], *later]}


def _tried(protocol: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    tried: dict[str, list[dict[str, Any]]] = {}
    for candidate in protocol["candidates"]:
        tried.setdefault(candidate["row"], []).append(candidate["overrides"])
    return tried


def _tune(
    make_study: Callable[[argparse.Namespace], "Study"],
    args: argparse.Namespace,
    study: "Study",
    candidates: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Train the candidates of these rows, and return the protocol to be recorded."""
    if getattr(args, "teacher_weights", None):
        raise ValueError(
            "--teacher-weights: this teacher may have seen the validation people: leave it out "
            "with --candidates"
        )
    part, validation = _validation_args(args, study)
    number = len(next(iter(candidates.values())))
    studies = []
    for index in range(number):
        part = copy.copy(part)
        part.candidate = f"candidate{index + 1}"
        part.tuned = {row: options[index] for row, options in candidates.items()}
        studies.append(make_study(part))
    teachers = [run for s in studies for run in [*s.first, *s.teachers.values()]]
    students = [run for s in studies for (row, _), run in s.runs.items() if row in candidates]
    for runs in (teachers, students):
        failed = run_all(_once(runs), jobs=args.jobs)
        if failed:
            raise RunFailed("; ".join(failed))
        if runs is teachers:
            for s in studies:
                s.before_students()
    results = [s.finished() for s in studies]
    metric = _metric(study.layout.metrics, results, list(candidates))
    record = []
    for row, options in candidates.items():
        scores = [
            {str(seed): of[row, seed]["metrics"][metric] for seed in args.tuning_seeds}
            for of in results
        ]
        means = [statistics.fmean(of_seeds.values()) for of_seeds in scores]
        best = means.index(max(means))
        record += [
            {"row": row, "overrides": option, "scores": of_seeds, "chosen": index == best}
            for index, (option, of_seeds) in enumerate(zip(options, scores))
        ]
    return {
        "recorded": now(),
        "tuned": True,
        "metric": metric,
        "validation": validation,
        "candidates": record,
    }


def _once(runs: list[Run]) -> list[Run]:
    return list({run.folder: run for run in runs}.values())


def _metric(
    names: tuple[str, ...], results: list[dict[tuple[str, int], Any]], rows: list[str]
) -> str:
    for name in names:
        if all(name in r["metrics"] for of in results for (row, _), r in of.items() if row in rows):
            return name
    raise ValueError("--candidates: the rows have no metric in common to choose them by")


def _validation_args(
    args: argparse.Namespace, study: "Study"
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Options of a study of the parts of the training set, and how it was split."""
    (name,) = [_base(name) for name in study.cfg.DATASETS.TRAIN[:1]]
    files, folder = locate_split(name), study.output / "validation"
    is_one = len(study.cfg.DATASETS.TRAIN) == 1
    own: list[list[str]] = []
    if is_one and is_reid(name):
        register_named_parts([f"{name}_val"])
        facts = data_digest(f"{name}_val")
        facts["queries"] = sum(s["role"] != "gallery" for s in get_reid_samples(f"{name}_val")[0])
    elif is_one and isinstance(files, SplitFiles):
        held = hold_out_people(files.json_file, folder / "data", seed=SPLIT_SEED)
        queries = folder / "data" / "query_info.txt"
        split = SplitFiles(str(held.test), files.image_root).load()
        split.name = f"{name}_val"
        count, people = write_queries_of(split, queries)
        own = [
            [f"{name}_fit", str(held.train), files.image_root],
            [f"{name}_val", str(held.test), files.image_root, str(queries)],
        ]
        facts = {"people": people, "images": len(split.dicts), "queries": count}
        facts["sha256"] = file_sha256(held.test)
    else:
        raise ValueError(
            f"--candidates: DATASETS.TRAIN {tuple(study.cfg.DATASETS.TRAIN)} is not one re-ID set, "
            "or one person search set in COCO-JSON, whose people can be split: see "
            "tools/convert_dataset.py"
        )

    def opts_of(config_file: str, opts: list[Any]) -> list[Any]:
        cfg = build_run_config(config_file, list(map(str, opts)), folder)
        crops = _CROPS if cfg.DATASETS.TRAIN[0].endswith(_CROPS) else ""
        sets = ["DATASETS.PERSON_SEARCH_COCO", str([*cfg.DATASETS.PERSON_SEARCH_COCO, *own])]
        return [
            *opts,
            *(sets if own else ()),
            *("DATASETS.TRAIN", str((f"{name}_fit{crops}",))),
            *("DATASETS.TEST", str((f"{name}_val{crops}",))),
        ]

    part = copy.copy(args)
    part.output = folder
    part.seeds = part.main_seeds = args.tuning_seeds
    part.opts = opts_of(args.student_config, list(args.opts))
    part.teacher_opts = opts_of(args.teacher_config, list(args.teacher_opts))
    seeds = {"of": name, "seed": SPLIT_SEED, "tuning_seeds": list(args.tuning_seeds)}
    return part, {**seeds, **facts}


def _base(name: str) -> str:
    return name[: -len(_CROPS)] if name.endswith(_CROPS) else name
