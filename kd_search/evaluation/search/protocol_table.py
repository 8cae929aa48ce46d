"""Table of the results under every protocol of a test set: a row each, with its settings."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional

import numpy as np
from pydantic import Field, model_validator

from kd_search.evaluation.flat_arrays import AnyPath
from kd_search.evaluation.query_results import shared_intervals
from kd_search.evaluation.search.galleries import WHOLE
from kd_search.evaluation.search.protocol import Protocol, TableOptions
from kd_search.evaluation.search.ranking import RankingResult
from kd_search.utils.files import atomic_write, read_json, write_json
from kd_search.utils.schema import Count, Percent, Schema, check_schema

TABLE_FILE = "person_search_table"
#: What the rows of one set differ in, in the order of the columns.
KEYS = ("boxes", "gallery", "cameras", "subset", "rerank", "mode")


class _Row(Schema):
    """The columns that are read back; see :attr:`ProtocolTable.columns` for all."""

    boxes: str
    gallery: str
    cameras: str
    subset: str
    rerank: str
    mode: str
    mAP: Optional[Percent]  # noqa: N815  as the metric is called
    mAP_low: Optional[Percent]  # noqa: N815
    mAP_high: Optional[Percent]  # noqa: N815
    queries: Count
    gallery_images: Annotated[float, Field(ge=0, le=1e9)]

    @model_validator(mode="after")
    def _agrees(self) -> "_Row":
        if (self.mAP_low is None) != (self.mAP_high is None):
            raise ValueError("has one end of the interval of mAP only")
        if self.mAP is not None and not (self.queries and self.gallery_images):
            raise ValueError("has a mAP, but no queries or no gallery_images")
        return self


class _Table(Schema):
    dataset: Optional[str] = None
    notes: list[str] = []
    rows: list[_Row]


def read_table_rows(folder: AnyPath) -> list[dict[str, Any]]:
    """Read the rows of ``person_search_table.json`` in a folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is another file, was changed, or a field is wrong; the message names it.
    """
    path = os.path.join(folder, f"{TABLE_FILE}.json")
    document = read_json(path, "table of protocols", sealed=True)
    check_schema(document, _Table, path)
    rows: list[dict[str, Any]] = document["rows"]
    return rows


@dataclass
class ProtocolTable:
    """Rows as plain types, None where there is nothing to rate; notes about missing rows."""

    top_k: Sequence[int]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return [
            *KEYS,
            *(f"{rate}{end}" for rate in rate_names(self.top_k) for end in ("", "_low", "_high")),
            *("queries", "queries_without_match", "gallery_images", "detections"),
            *("score_thresh", "iou_thresh", "similarity", "cbgm_k1", "cbgm_k2", "note"),
        ]

    def select(self, **keys: Any) -> list[dict[str, Any]]:
        """Return the rows with these values, such as ``gallery="G100", mode="corrected"``."""
        return [row for row in self.rows if all(row[k] == v for k, v in keys.items())]

    def to_csv(self) -> str:
        """Format the rows as CSV; an empty cell where there is nothing to rate."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
        return text.getvalue()

    def write(self, folder: AnyPath, dataset_name: Optional[str]) -> None:
        """Write ``person_search_table.csv`` and ``.json``."""
        with atomic_write(os.path.join(folder, f"{TABLE_FILE}.csv")) as file:
            file.write(self.to_csv().encode())
        write_json(
            os.path.join(folder, f"{TABLE_FILE}.json"),
            {"dataset": dataset_name, "notes": self.notes, "rows": self.rows},
            sealed=True,
        )

    def __str__(self) -> str:
        """Format the table as text: modes with equal numbers share a line."""
        from tabulate import tabulate

        rates = rate_names(self.top_k)
        counts = ("queries", "queries_without_match", "gallery_images")
        lines: list[list[Any]] = []
        seen: dict[tuple[Any, ...], tuple[list[Any], list[Any]]] = {}
        for row in self.rows:
            key = tuple(row[k] for k in KEYS if k != "mode")
            numbers = [row[k] for k in (*rates, *counts)]
            if key in seen and seen[key][1] == numbers:
                seen[key][0][KEYS.index("mode")] = "both"
                continue
            low, high = row["mAP_low"], row["mAP_high"]
            percent = ["" if row[rate] is None else f"{row[rate]:.2f}" for rate in rates]
            interval = "" if low is None else f"{low:.1f} to {high:.1f}"
            line = [*(row[k] for k in KEYS), percent[0], interval, *percent[1:]]
            line += [row[k] for k in counts]
            seen.setdefault(key, (line, numbers))
            lines.append(line)
        head = [*KEYS, "mAP", "95 %", *rates[1:], "queries", "no match", "images"]
        table = tabulate(lines, head, tablefmt="simple", disable_numparse=True)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def table_rows(
    results: Sequence[RankingResult],
    boxes: str,
    options: TableOptions,
    protocol: Protocol,
    subsets: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Make the rows of one set of boxes, in the order of the results.

    Args:
        boxes: "detected" or "ground_truth".
        protocol: with which the results were computed.
        subsets: name to (Q,) bool, queries that get rows of their own in every gallery.
    """
    names = rate_names(protocol.top_k)
    rows, samples = [], []
    for result in results:
        rates = result.rates(protocol.top_k)
        ranked = result.protocol
        everybody = np.ones(len(result.ap), bool)
        for subset, chosen in {WHOLE: everybody, **subsets}.items():
            if ranked.gallery.queries is not None and subset != ranked.gallery.name:
                continue
            asked = chosen if ranked.gallery.queries is None else chosen & ranked.gallery.queries
            counted = asked & (result.num_gt > 0)
            images = result.num_images[asked]
            note = None
            if not len(asked):
                note = "the set has no query"
            elif not asked.any():
                note = "no query of the set is asked here"
            elif not counted.any():
                note = "the person of no query is in its gallery"
            row: dict[str, Any] = {
                "boxes": boxes,
                "gallery": ranked.gallery.name,
                "cameras": ranked.cameras,
                "subset": subset,
                "rerank": "cbgm" if ranked.reranked else "none",
                "mode": ranked.mode,
            }
            means = rates[counted].mean(axis=0).tolist() if counted.any() else [None] * len(names)
            for name, mean in zip(names, means):
                row.update({name: mean, f"{name}_low": None, f"{name}_high": None})
            row.update(
                queries=int(counted.sum()),
                queries_without_match=int((asked & ~counted).sum()),
                gallery_images=round(float(images.mean()), 1) if len(images) else 0.0,
                detections=result.num_detections,
                score_thresh=float(protocol.score_thresh),
                iou_thresh=float(protocol.iou_thresh),
                similarity=protocol.similarity,
                cbgm_k1=int(options.cbgm_k1) if ranked.reranked else None,
                cbgm_k2=int(options.cbgm_k2) if ranked.reranked else None,
                note=note,
            )
            rows.append(row)
            samples.append((rates, counted))
    if options.bootstrap:
        for row, interval in zip(rows, shared_intervals(samples, options.bootstrap, options.seed)):
            for name, low, high in zip(names, *interval):
                row[f"{name}_low"], row[f"{name}_high"] = float(low), float(high)
    return rows


def rate_names(top_k: Sequence[int]) -> list[str]:
    """Names of the columns of :meth:`RankingResult.rates`."""
    return ["mAP", *(f"top{k}" for k in top_k)]
