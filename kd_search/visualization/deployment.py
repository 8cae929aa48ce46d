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
        known = [f"{p['threshold']:.2f} for false matches of {_rate(p)}" for p in points]
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
    rows, reasons = [], []
    for point in found["points"]:
        rate = _rate(point)
        if point["threshold"] is None:
            rows.append((rate, "none", ""))
            reasons.append(f"No threshold for {rate}: {point['reason']}.")
            continue
        threshold = f"{point['threshold']:.3f}{_ends(point['threshold_interval'], 1, 3)}"
        kept = (
            f"{100 * point['true_match_rate']:.1f} %{_ends(point['true_match_interval'], 100, 1)}"
        )
        rows.append((rate, threshold, kept))
    known = {key: value for key, value in found.items() if key in Calibration.__annotations__}
    known["points"] = [OperatingPoint(**point) for point in found["points"]]
    plot = draw_roc({found["dataset"]: Calibration(**known)}, found["dataset"])
    alt = f"Share of true matches over the share of false matches in {found['dataset']}"
    checked = [
        (number, f"{1e4 * one['false_match_rate']:g}", f"{one['threshold']:.3f}", _realised(one))
        for number, half in enumerate(found.get("halves", ()), start=1)
        for one in half
    ]
    heads = ("Half", "allowed", "similarity", "on the others")
    halves = page.table(heads, checked, "Thresholds of half of the people") if checked else ""
    return [
        page.table(("False matches", "similarity", "true matches kept"), rows, "Thresholds"),
        page.item_list(reasons) if reasons else "",
        page.paragraph(
            "False matches are shares of the comparisons of different people; in brackets 95 % "
            "intervals over people.",
            "note",
        ),
        f'<div class="pair"><figure>{page.drawing(plot, alt)}</figure>\n<div>{halves}',
        page.paragraph(
            "Thresholds of a random half of the people, and false matches of the others at them, "
            "in 10,000 comparisons.",
            "note",
        )
        if checked
        else "",
        "</div></div>\n",
    ]


def _rate(point: Mapping[str, Any]) -> str:
    return f"1 in {round(1 / point['false_match_rate']):,}"


def _realised(half: Mapping[str, Any]) -> str:
    return f"{1e4 * half['realised']:.0f}{_ends(half['realised_interval'], 1e4, 0)}"


def _ends(ends: Any, factor: float, digits: int) -> str:
    if ends is None:
        return ""
    low, high = (factor * end for end in ends)
    return f" ({low:.{digits}f} to {high:.{digits}f})"
