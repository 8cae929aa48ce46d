"""What stands below a table or figure of a document: where its numbers come from."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kd_search.experiments.results_file import RunRecord, StudyFile
from kd_search.experiments.table import markdown_table


def facts(study: StudyFile, table: Sequence[Mapping[str, Any]], source: str) -> str:
    """What a reader must know about a table: command, seeds, data, hardware, versions, settings.

    Args:
        study: of the table.
        table: its entries.
        source: link to the results file.
    """
    shown = {entry["row"] for entry in table}
    runs = [run for run in study.runs if run.row in shown]
    gains = [m["gain"] for e in table for m in e["metrics"].values() if m["gain"]]
    parts = [_tested_on(study), _seeds(runs)]
    if any(gain["std"] is not None for gain in gains):
        parts.append("± is the standard deviation over seeds")
    if any(gain["over_seeds"] for gain in gains):
        parts.append("95 % over seeds: Student's t of the differences seed by seed")
    if any(gain["over_queries"] for gain in gains):
        parts.append("95 % over queries: bootstrap of the queries' mean differences over the seeds")
    parts += [_settings(study), *_environment(study, runs)]
    parts += [study.note] if study.note else []
    return f"    {study.command}\n\n{'. '.join(part for part in parts if part)}. From {source}.\n"


def choices(study: StudyFile, name: str) -> str:
    """The settings that a study compared on people split off its training set, as a table.

    Raises:
        ValueError: none were compared; the message starts with ``name``.
    """
    protocol = study.protocol
    if protocol is None or not protocol.candidates:
        raise ValueError(f"{name}: no settings were compared (--candidates)")
    seeds = list(dict.fromkeys(seed for c in protocol.candidates for seed in c.scores))
    lines = [
        [
            candidate.row,
            ", ".join(f"{key} {value}" for key, value in candidate.overrides.items()),
            *(f"{candidate.scores[seed]:.1f}" for seed in seeds),
            "yes" if candidate.chosen else "",
        ]
        for candidate in protocol.candidates
    ]
    head = ["row", "setting", *(f"{protocol.metric}, seed {seed}" for seed in seeds), "chosen"]
    facts = protocol.validation
    of = f"{facts['people']} people with {facts['images']} images and {facts['queries']} queries"
    return (
        f"{markdown_table(head, lines)}\nOn {of} split off `{facts['of']}`, by networks trained on "
        "the rest.\n"
    )


def _tested_on(study: StudyFile) -> str:
    found = {
        json.dumps(e.data[study.dataset], sort_keys=True)
        for e in study.environments
        if study.dataset in e.data
    }
    if len(found) != 1:
        return f"Tested on `{study.dataset}`"
    data = json.loads(found.pop())
    people = f", {data['people']} people" if "people" in data else ""
    content = f"{data['images']} images{people}, sha256 {data['sha256'][:12]}"
    return f"Tested on `{study.dataset}` ({content})"


def _seeds(runs: Sequence[RunRecord]) -> str:
    rows: dict[tuple[int, ...], list[str]] = {}
    seeds: dict[str, list[int]] = {}
    for run in runs:
        if run.seed is not None:
            seeds.setdefault(run.row, []).append(run.seed)
    for row, of_row in seeds.items():
        rows.setdefault(tuple(sorted(of_row)), []).append(row)
    texts = {
        numbers: f"{'Seed' if len(numbers) == 1 else 'Seeds'} {', '.join(map(str, numbers))}"
        for numbers in rows
    }
    if len(rows) == 1:
        return next(iter(texts.values()))
    listed = [f"{texts[numbers]} of {', '.join(names)}" for numbers, names in rows.items()]
    return "; ".join(listed)


def _settings(study: StudyFile) -> str:
    protocol = study.protocol
    if protocol is None:
        return "How the settings were chosen was not recorded"
    if not protocol.tuned:
        return "Settings of the configs, none chosen in this study"
    per_row = len(protocol.candidates) // len({c.row for c in protocol.candidates})
    return (
        f"Settings chosen by {protocol.metric} on people and frames split off the training set, "
        f"{per_row} candidates for each row"
    )


def _environment(study: StudyFile, runs: Sequence[RunRecord]) -> list[str]:
    numbers = dict.fromkeys(run.environment for run in runs if run.environment is not None)
    environments = [study.environments[number] for number in numbers]
    hardware = [_hardware(e.hardware) for e in environments if e.hardware]
    versions = [
        ", ".join(f"{name} {version}" for name, version in e.versions.items()) for e in environments
    ]
    commits = [e.code["commit"][:12] + "+" * e.code["modified"] for e in environments if e.code]
    starts = sorted(run.started for run in runs if run.started)
    seconds = [run.seconds for run in runs if run.seconds is not None and not run.resumed]
    parts = ["; ".join(dict.fromkeys(hardware)) or "Hardware not recorded"]
    parts += ["; ".join(dict.fromkeys(versions))] if versions else []
    parts += [f"Commit {', '.join(dict.fromkeys(commits))}"] if commits else []
    parts += [f"Started {starts[0][:10]}"] if starts else []
    if seconds and len(seconds) == len(runs):
        parts.append(f"{sum(seconds) / 3600:.1f} h for these rows")
    return parts


def _hardware(facts_of: Mapping[str, Any]) -> str:
    device = facts_of.get("accelerator") or facts_of.get("processor") or facts_of.get("machine")
    return f"{device}, {facts_of.get('threads')} of {facts_of.get('cores')} cores a run"
