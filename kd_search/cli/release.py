"""Make a folder that others can use: an exported network, its manifest, checksums, a model card.

    kd-search export output/run --output student.onnx
    kd-search calibrate output/run --dataset held_out --model student.onnx
    kd-search release student.onnx --results output/run --data-licence "CC BY 4.0" --output release/

writes the model file and its manifest, SHA256SUMS for `sha256sum --check`, example.py, and
MODEL_CARD.md: data, intended use, limits, metrics with their intervals, calibration, licence of the
data. Read the card before you publish it: what it cannot know is marked with TODO.

Exit status: 0 written, 2 the input cannot be used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kd_search.cli._arguments import RUN_HELP, command_parser, exit_status
from kd_search.utils.arguments import add_import_argument

CARD, EXAMPLE, SUMS = "MODEL_CARD.md", "example.py", "SHA256SUMS"
_EXAMPLE = '''"""Rank the people of a picture by their similarity to a person in another one.

    python example.py QUERY.jpg X0 Y0 X1 Y1 SCENE.jpg
"""

import sys
from pathlib import Path

from kd_search.runtime import PersonSearcher

query, *box, scene = sys.argv[1:]
searcher = PersonSearcher.load(Path(__file__).parent / "{model}")
(wanted,) = searcher.embed(query, [[float(edge) for edge in box]])
people = searcher.detect(scene)
ranked = sorted(zip(people.embeddings @ wanted, people.boxes.tolist()), reverse=True)
for similarity, box in ranked:
    print(f"{{similarity:.3f}} {{[round(edge) for edge in box]}}")
'''


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("release", __doc__)
    parser.add_argument("model", metavar="MODEL", help="exported network, with its manifest")
    parser.add_argument("--results", metavar="RUN", help=f"evaluated: {RUN_HELP}")
    parser.add_argument("--dataset", metavar="NAME", help="of a RUN with several sets")
    parser.add_argument("--name", help="of the model; default: the name of the file")
    parser.add_argument("--data-licence", metavar="TEXT", help="of the pictures of the training")
    parser.add_argument("--output", metavar="DIR", required=True, help="a folder that is not there")
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status("release", partial(_release, get_parser().parse_args(argv)))


def _release(args: argparse.Namespace) -> None:
    from kd_search.runtime.manifest import manifest_path, read_manifest
    from kd_search.utils.files import file_sha256

    manifest = read_manifest(manifest_path(args.model))
    if manifest["network"] != "person_search":
        raise ValueError(f"{args.model}: a release is of a person search network")
    if file_sha256(args.model) != manifest["file_sha256"]:
        raise ValueError(f"{args.model} is not the file of its manifest: export it again")
    results = None
    if args.results:
        from kd_search.cli._runs import evaluations
        from kd_search.evaluation.search.compare_runs import load_results

        files = evaluations({"run": args.results}, args.dataset, args.imports)
        results = load_results(files["run"])
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists: name a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".release-") as temporary:
        folder = Path(temporary, "release")
        folder.mkdir()
        model = Path(args.model)
        for path in (model, manifest_path(model)):
            shutil.copyfile(path, folder / path.name)
        (folder / EXAMPLE).write_text(_EXAMPLE.format(model=model.name), encoding="utf-8")
        card = model_card(args.name or model.stem, manifest, results, args.data_licence)
        (folder / CARD).write_text(card, encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
        sums = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)
        (folder / SUMS).write_text(sums, encoding="utf-8")
        os.replace(folder, output)
    print(f"wrote {args.output}: {', '.join([*names, SUMS])}")


def model_card(
    name: str,
    manifest: dict[str, Any],
    results: dict[str, Any] | None,
    data_licence: str | None,
) -> str:
    """The model card, as Markdown (after Mitchell et al., "Model Cards for Model Reporting", 2019).

    Args:
        name: of the model.
        manifest: of its file.
        results: of an evaluation, see :func:`~.compare_runs.load_results`.
        data_licence: of the pictures of the training.
    """
    versions = ", ".join(f"{key} {value}" for key, value in manifest["versions"].items())
    wheel = f"kd_search-{manifest['versions'].get('kd_search', 'VERSION')}-py3-none-any.whl"
    sets = ", ".join(manifest["training_sets"]) or "TODO"
    facts = [
        ("file", f"`{manifest['file']}`, {manifest['file_bytes'] / 2**20:.1f} MiB"),
        ("SHA-256", f"`{manifest['file_sha256']}`"),
        ("weights", manifest["weights_type"]),
        ("input", f"shorter side {manifest['min_size']}, longer side up to {manifest['max_size']}"),
        ("output", f"boxes, scores, embeddings of {manifest['embedding_dim']} numbers"),
        ("made with", versions),
    ]
    parts = [
        f"# {name}",
        "Finds everybody in a picture, and gives each an embedding: two of the same person have a "
        "high cosine similarity. Trained with kd_search.",
        _table(("", ""), facts),
        "## Data",
        f"Training sets: {sets}. Licence of the pictures: {data_licence or 'TODO'}. What the "
        "people in them agreed to: TODO.",
        "## Intended use",
        "Finding a person again in pictures that you may search, with somebody who looks at every "
        "result before anything follows from it. Not for decisions about people by itself, for "
        "identification of people by name, or for following people without a legal basis: see "
        "responsible use in the documentation of kd_search.",
        "## Metrics",
        _metrics(results, manifest.get("int8")),
        "## Which similarity is the same person?",
        _calibration(manifest["calibration"]),
        "## Limits",
        "Pictures that differ from those of the training (cameras, clothing of other seasons, "
        "night, children, crowds) give worse results, and the figures above say nothing about "
        "them. Clothing is most of what an embedding sees. How results differ between groups of "
        "people: TODO, not measured unless it stands here.",
        "## Use",
        "kd_search without what it requires for training, and what its runtime requires:",
        f"    pip install --no-deps {wheel}\n    pip install onnxruntime numpy Pillow\n"
        f"    python {EXAMPLE} QUERY.jpg X0 Y0 X1 Y1 SCENE.jpg",
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(results: dict[str, Any] | None, int8: dict[str, Any] | None) -> str:
    """Metrics of an evaluation, and what the int8 file lost."""
    loss = ""
    if int8 is not None:
        ours, before = int8["int8"], int8["float32"]
        loss = (
            f"This file computes with 8-bit integers: on {int8['dataset']} it has mAP "
            f"{ours['mAP']:.1f} and top-1 {ours['top1']:.1f}; the network in single precision, of "
            f"which all other figures here are, {before['mAP']:.1f} and {before['top1']:.1f}.\n\n"
        )
    if results is None:
        return loss + "TODO: make the release with --results RUN."
    rows = []
    for task, values in results["metrics"].items():
        for key, value in values.items():
            ends = results.get("intervals", {}).get(key) if task == "person_search" else None
            shown = "" if value is None else f"{value:.1f}" if isinstance(value, float) else value
            interval = f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""
            rows.append((f"{task}: {key}", shown, interval))
    protocol = results.get("protocol") or {}
    settings = ", ".join(f"{key} {value}" for key, value in protocol.items())
    return loss + (
        f"Test set: {results['dataset']}, of other people than the training. {settings}. Percent, "
        "95 % bootstrap intervals over the queries of one training.\n\n"
        + _table(("metric", "value", "interval"), rows)
    )


def _calibration(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "Not calibrated: the similarity of a match says nothing by itself."
    note = f", {calibration['note']}" if calibration.get("note") else ""
    rows = []
    for point in calibration["points"]:
        rate = f"1 in {round(1 / point['false_match_rate']):,}"
        if point["threshold"] is None:
            rows.append((rate, "none", "", point["reason"]))
            continue
        low, high = point["threshold_interval"] or (None, None)
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        kept = f"{100 * point['true_match_rate']:.1f} %"
        rows.append((rate, f"{point['threshold']:.3f}", interval, kept))
    return (
        f"Measured on {calibration['dataset']}: {calibration['num_detections']} detections of "
        f"{calibration['num_people']} people{note}.\n\n"
        + _table(("false matches", "threshold", "interval", "true matches kept"), rows)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
