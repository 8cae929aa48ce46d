"""The part of a report about the exported network: its files, and which similarity to trust."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd_search.evaluation.search.calibration import Calibration, OperatingPoint

from . import page
from .search_plots import draw_roc

_RUN_WITH = {
    "onnx": "kd_search.runtime, without torch",
    "torchscript": "torch and torchvision",
}


@dataclass(frozen=True)
class Deployment:
    """An exported network.

    Attributes:
        files: format to name and size in bytes.
        left_out: other formats, and why there is no file.
        calibration: :meth:`.Calibration.to_dict`, with ``halves`` and ``note`` where known, or
            ``dataset`` and ``reason`` where there is none.
    """

    files: Mapping[str, tuple[str, int]]
    left_out: Mapping[str, str]
    calibration: Mapping[str, Any]

    def sentences(self) -> list[str]:
        """What is missing, and what the thresholds were found on."""
        lines = [f"Not exported as {form}: {reason}." for form, reason in self.left_out.items()]
        found = self.calibration
        if "reason" in found:
            return [*lines, f"Not calibrated on {found['dataset']}: {found['reason']}."]
        text = (
            f"Calibrated on {found['dataset']}, {found['num_detections']} detections of "
            f"{found['num_people']} people"
        )
        if note := found.get("note"):
            text += f": {note}"
        points = [p for p in found["points"] if p["threshold"] is not None]
        known = [
            f"{p['threshold']:.2f} for 1 false match in {round(1 / p['false_match_rate']):,}"
            for p in points
        ]
        return [*lines, f"{text}. Thresholds: {', '.join(known) or 'none'}."]


def deployment_section(deployment: Deployment) -> str:
    """A section of a page."""
    files = [
        (name, _RUN_WITH.get(form, form), f"{size / 2**20:.1f} MiB")
        for form, (name, size) in deployment.files.items()
    ]
    parts = [
        page.table(("File", "runs with", "size"), files, "Exported files"),
        page.item_list(deployment.sentences()),
    ]
    if "reason" not in deployment.calibration:
        parts += _thresholds(deployment.calibration)
    return page.section("The student to deploy", *parts)


def _thresholds(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for point in found["points"]:
        rate = f"1 in {round(1 / point['false_match_rate']):,}"
        if point["threshold"] is None:
            rows.append((rate, "none", point["reason"], ""))
            continue
        threshold = f"{point['threshold']:.3f}{_ends(point['threshold_interval'], 1, 3)}"
        kept = (
            f"{100 * point['true_match_rate']:.1f} %{_ends(point['true_match_interval'], 100, 1)}"
        )
        rows.append((rate, threshold, kept, _on_others(found.get("halves", ()), point)))
    heads = ("False matches", "similarity", "true matches kept", "on the other half, in 10,000")
    known = {key: value for key, value in found.items() if key in Calibration.__annotations__}
    known["points"] = [OperatingPoint(**point) for point in found["points"]]
    plot = draw_roc({found["dataset"]: Calibration(**known)}, found["dataset"])
    alt = f"Share of true matches over the share of false matches in {found['dataset']}"
    return [
        page.table(heads, rows, "Thresholds of similarity"),
        page.paragraph(
            "Rates are shares of the comparisons of different people; in brackets 95 % intervals "
            "over people. Last column: thresholds of a random half of the people, and how often "
            "different people of the other half reach them, with its 95 % interval.",
            "note",
        ),
        f"<figure>{page.drawing(plot, alt)}</figure>\n",
    ]


def _on_others(halves: Any, point: Mapping[str, Any]) -> str:
    same = [
        found
        for half in halves
        for found in half
        if found["false_match_rate"] == point["false_match_rate"]
    ]
    return "; ".join(
        f"{1e4 * found['realised']:.0f}{_ends(found['realised_interval'], 1e4, 0)}"
        for found in same
    )


def _ends(ends: Any, factor: float, digits: int) -> str:
    if ends is None:
        return ""
    low, high = (factor * end for end in ends)
    return f" ({low:.{digits}f} to {high:.{digits}f})"
