"""Every protocol of a test set in one tidy table: a row each, with what its numbers depend on."""

import csv
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Optional, Union

import numpy as np
from pydantic import Field, model_validator

from kd_search.evaluation.confidence import (
    bootstrap_intervals,
    resampling_weights,
)
from kd_search.evaluation.search.galleries import (
    CAMERAS,
    MODES,
    WHOLE,
    Gallery,
    View,
    complete_gallery,
    gallery_size,
    smallest,
)
from kd_search.evaluation.search.ranking.result import ViewResult
from kd_search.utils.files import (
    atomic_write,
    read_json,
    write_json,
)
from kd_search.utils.schema import (
    Count,
    Percent,
    Schema,
    check_schema,
)

TABLE_FILE = "person_search_table"
#: What the rows of one set differ in, in the order of the columns.
KEYS = ("boxes", "gallery", "cameras", "subset", "rerank", "mode")
_WHOLE_SIZE = -1


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


def read_table_rows(folder: Union[str, os.PathLike]) -> list[dict[str, Any]]:
    """Rows of ``person_search_table.json`` in a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, was changed, or a field is wrong; one line that names it.
    """
    path = os.path.join(folder, f"{TABLE_FILE}.json")
    document = read_json(path, "table of protocols", sealed=True)
    check_schema(document, _Table, path)
    return document["rows"]


@dataclass
class TableOptions:
    """Which protocols a table covers.

    Attributes:
        gallery_sizes: as in the names of the protocol's lists (100 is "G100"), -1 for the whole
            pool; empty for all that the set has. A set without lists has the whole pool only.
        cameras: of :data:`CAMERAS`; others than "all" need a set of at least two cameras.
        modes: of :data:`MODES`.
        cbgm: also re-ranked by context.
        cbgm_k1, cbgm_k2: see :mod:`.cbgm`.
        bootstrap: resamples of the intervals; 0 for none.
        seed: of the resamples.
    """

    gallery_sizes: Sequence[int] = ()
    cameras: Sequence[str] = CAMERAS
    modes: Sequence[str] = MODES
    cbgm: bool = True
    cbgm_k1: int = 10
    cbgm_k2: int = 3
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self):
        for name, values, known in (
            ("cameras", self.cameras, CAMERAS),
            ("modes", self.modes, MODES),
        ):
            strange = [value for value in values if value not in known]
            if strange or not len(values):
                have = repr(strange[0]) if strange else "nothing"
                raise ValueError(f"{name} holds {have}; it takes any of {', '.join(known)}")
        if self.cbgm and (self.cbgm_k1 < 1 or self.cbgm_k2 < 1):
            raise ValueError(f"cbgm_k1 {self.cbgm_k1} and cbgm_k2 {self.cbgm_k2} must be 1 or more")
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap {self.bootstrap} must be 0 or more")


@dataclass
class ProtocolTable:
    """Rows as plain types, None where there is nothing to rate; and what is not in it, and why."""

    top_k: Sequence[int]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        rates = ["mAP", *(f"top{k}" for k in self.top_k)]
        return [
            *KEYS,
            *(name for rate in rates for name in (rate, f"{rate}_low", f"{rate}_high")),
            *("queries", "queries_without_match", "gallery_images", "detections"),
            *("score_thresh", "iou_thresh", "similarity", "cbgm_k1", "cbgm_k2", "note"),
        ]

    def select(self, **keys) -> list[dict[str, Any]]:
        """Rows with these values, such as ``select(gallery="G100", mode="corrected")``."""
        return [row for row in self.rows if all(row[k] == v for k, v in keys.items())]

    def to_csv(self) -> str:
        """The rows as CSV; an empty cell where there is nothing to rate."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
        return text.getvalue()

    def write(self, folder: Union[str, os.PathLike], dataset_name: Optional[str]) -> None:
        """Write ``person_search_table.csv`` and ``.json``."""
        with atomic_write(os.path.join(folder, f"{TABLE_FILE}.csv")) as file:
            file.write(self.to_csv().encode())
        write_json(
            os.path.join(folder, f"{TABLE_FILE}.json"),
            {"dataset": dataset_name, "notes": self.notes, "rows": self.rows},
            sealed=True,
        )

    def __str__(self) -> str:
        """The table to be read: modes that give the same numbers share a line."""
        from tabulate import tabulate

        rates = ["mAP", *(f"top{k}" for k in self.top_k)]
        head = [*KEYS, "mAP", "95 %", *rates[1:], "queries", "no match", "images"]
        lines, seen = [], {}
        for row in self.rows:
            key = tuple(row[k] for k in KEYS if k != "mode")
            numbers = tuple(
                row[k] for k in (*rates, "queries", "queries_without_match", "gallery_images")
            )
            if key in seen and seen[key][1] == numbers:
                seen[key][0][KEYS.index("mode")] = "both"
                continue
            low, high = row["mAP_low"], row["mAP_high"]
            line = [row[k] for k in KEYS]
            line += [_percent(row["mAP"]), "" if low is None else f"{low:.1f} to {high:.1f}"]
            line += [_percent(row[rate]) for rate in rates[1:]]
            line += [row["queries"], row["queries_without_match"], row["gallery_images"]]
            seen.setdefault(key, (line, numbers))
            lines.append(line)
        table = tabulate(lines, head, tablefmt="simple", disable_numparse=True)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def table_views(
    galleries: Sequence[Gallery], options: TableOptions, cameras: np.ndarray
) -> tuple[list[View], list[str]]:
    """The views that a table needs, and notes about what the set cannot give.

    Args:
        galleries: the lists of the protocol, if any.
        cameras: (G,) camera of each image, -1 unknown.

    Raises:
        ValueError: a gallery size is asked for that the protocol does not list.
    """
    notes, views = [], []
    wanted = list(options.cameras)
    known = np.unique(cameras[cameras >= 0])
    if len(known) < 2 and wanted != ["all"]:
        notes.append(
            f"the images are of {len(known)} known cameras: no rows for "
            f"{', '.join(c for c in wanted if c != 'all')}"
        )
        wanted = ["all"]
    elif wanted != ["all"] and (cameras < 0).any():
        notes.append(
            f"{int((cameras < 0).sum())} images of unknown camera are in no cross-camera gallery"
        )
    for mode in options.modes:
        for gallery in _galleries_of(galleries, options.gallery_sizes, mode):
            for camera in wanted:
                for reranked in (False, True) if options.cbgm else (False,):
                    views.append(View(gallery, camera, mode, reranked))
    return views, notes


def table_rows(
    results: Sequence[ViewResult],
    boxes: str,
    options: TableOptions,
    *,
    top_k: Sequence[int],
    subsets: dict[str, np.ndarray],
    num_detections: int,
    score_thresh: float,
    iou_thresh: float,
    similarity: str = "cosine",
) -> list[dict[str, Any]]:
    """Rows of the views of one set of boxes, in the order of the views.

    Args:
        results: of :func:`search_views`.
        boxes: "detected" or "ground_truth".
        subsets: name to (Q,) bool, queries that get rows of their own in every gallery.
        num_detections: searched at all, over all images.
        similarity: as the row shall say.
    """
    names = [f"top{k}" for k in top_k]
    rows, samples = [], []
    for result in results:
        ranks = result.first_hit_rank
        hits = [(ranks >= 1) & (ranks <= k) for k in top_k]
        values = 100 * np.stack([result.ap, *hits], axis=1)
        own_subset = result.view.gallery.queries is not None
        for subset, chosen in _subsets_of(result, subsets):
            asked = result.searched_by & chosen
            counted = asked & (result.num_gt > 0)
            row = {
                "boxes": boxes,
                "gallery": result.view.gallery.name,
                "cameras": result.view.cameras,
                "subset": subset,
                "rerank": "cbgm" if result.view.reranked else "none",
                "mode": result.view.mode,
            }
            if own_subset and subset != result.view.gallery.name:
                continue
            means = values[counted].mean(axis=0) if counted.any() else [None] * (1 + len(names))
            for name, mean in zip(["mAP", *names], means):
                row[name] = None if mean is None else float(mean)
                row[f"{name}_low"] = row[f"{name}_high"] = None
            row["queries"] = int(counted.sum())
            row["queries_without_match"] = int((asked & ~counted).sum())
            images = result.num_images[asked]
            row["gallery_images"] = round(float(images.mean()), 1) if len(images) else 0.0
            row["detections"] = int(num_detections)
            row["score_thresh"], row["iou_thresh"] = float(score_thresh), float(iou_thresh)
            row["similarity"] = similarity
            row["cbgm_k1"] = int(options.cbgm_k1) if result.view.reranked else None
            row["cbgm_k2"] = int(options.cbgm_k2) if result.view.reranked else None
            row["note"] = _why_empty(asked, counted)
            rows.append(row)
            samples.append((row, counted, values))
    if options.bootstrap:
        _add_intervals(samples, ["mAP", *names], options)
    return rows


def subsets_of_galleries(galleries: Sequence[Gallery]) -> dict[str, np.ndarray]:
    """Queries of the galleries that only some search ("occlusion", "resolution")."""
    return {g.name: g.queries for g in galleries if g.queries is not None}


def log_table(table: ProtocolTable, dataset_name: Optional[str]) -> None:
    """Print the table through the logger."""
    logging.getLogger(__name__).info("protocols of %s:\n%s", dataset_name, table)


def listed_names(names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """The lists that a table of these sizes needs, of all that a protocol has.

    Raises:
        ValueError: a size is not among them.
    """
    sized = {gallery_size(name): name for name in names if gallery_size(name) is not None}
    if not len(sizes) or not sized:
        return list(names)
    missing = [size for size in sizes if size != _WHOLE_SIZE and size not in sized]
    if missing:
        have = ", ".join(map(str, sorted(sized)))
        raise ValueError(
            f"gallery size {missing[0]}: the protocol lists {have}; -1 is the whole pool"
        )
    wanted = {sized[size] for size in sizes if size != _WHOLE_SIZE}
    if _WHOLE_SIZE in sizes:
        wanted.add(smallest(names))
    return [name for name in names if name in wanted or gallery_size(name) is None]


def _galleries_of(galleries, sizes, mode: str) -> list[Gallery]:
    """Sizes ascending, other lists of all queries, the whole pool, the lists of subsets."""
    full = {g.name: g for g in galleries if g.queries is None}
    partial = [g for g in galleries if g.queries is not None]
    sized = sorted((name for name in full if gallery_size(name) is not None), key=gallery_size)
    other = [g for name, g in full.items() if gallery_size(name) is None]
    whole = Gallery.whole()
    if mode == "compat" and sized:
        whole = complete_gallery(full[sized[0]])
    if len(sizes) and sized:
        pool = [whole] if _WHOLE_SIZE in sizes else []
        sized = [name for name in sized if gallery_size(name) in sizes]
    else:
        pool = [whole]
    return [*(full[name] for name in sized), *other, *pool, *partial]


def _subsets_of(result: ViewResult, subsets):
    everybody = np.ones(len(result.ap), bool)
    yield from {WHOLE: everybody, **subsets}.items()


def _why_empty(asked: np.ndarray, counted: np.ndarray) -> Optional[str]:
    if counted.any():
        return None
    if not len(asked):
        return "the set has no query"
    if not asked.any():
        return "no query of the set is asked here"
    return "the person of no query is in its gallery"


def _add_intervals(samples, names, options: TableOptions) -> None:
    """Rows over the same queries share resamples, so that their intervals can be compared."""
    groups: dict[bytes, list] = {}
    for sample in samples:
        groups.setdefault(np.packbits(sample[1]).tobytes(), []).append(sample)
    for group in groups.values():
        counted = group[0][1]
        if not counted.any():
            continue
        weights = resampling_weights(int(counted.sum()), options.bootstrap, options.seed)
        values = np.concatenate([values[counted] for _, _, values in group], axis=1)
        low, high = bootstrap_intervals(values, options.bootstrap, options.seed, weights)
        columns = ((row, name) for row, _, _ in group for name in names)
        for (row, name), one, other in zip(columns, low, high):
            row[f"{name}_low"], row[f"{name}_high"] = float(one), float(other)


def _percent(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.2f}"


def options_as_dict(options: TableOptions) -> dict[str, Any]:
    """Plain types, for JSON."""
    return {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in asdict(options).items()}
