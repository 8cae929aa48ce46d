"""Plot evaluated runs.

    kd-search plot output/run --output plots/
    kd-search plot plain=output/a distilled=output/b/inference/cuhk_sysu_test --output plots/

A run is the output folder of a training, RUN, RUN/inference or RUN/inference/SET, or another folder
with the results of an evaluation; it may have a label. All runs share

    gallery_sizes.png      mAP over the size of the gallery, where the set's protocol lists several
    cmc.png                share of the queries with a hit among the first k
    precision_recall.png   mean over the queries
    open_set.png           people missed over false alarms (FNIR over FPIR)
    roc.png                true over false matches, with the thresholds of a calibration

and each run has its own

    <label>_camera_pairs.png   mAP of each camera's queries in each camera's images
    <label>_distances.png      distances of the same and of different people

The last five need person_search_detections.npz and the data set. Plots that cannot be
drawn are named.

Exit status: 0 drawn, 2 the input cannot be used.
"""

import argparse
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, Optional

from kd_search.cli._arguments import command_parser, exit_status, split_labels
from kd_search.utils.arguments import add_import_argument


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("plot", __doc__)
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the pictures")
    parser.add_argument(
        "--dataset", metavar="NAME", help="of a RUN with several sets; default: that of the runs"
    )
    parser.add_argument("--max-rank", type=int, default=50, help="of the CMC (default: 50)")
    for name, values, default in (
        ("boxes", ("detected", "ground_truth"), "detected"),
        ("cameras", ("all", "cross_camera", "junk_same_camera"), "all"),
        ("rerank", ("none", "cbgm"), "none"),
        ("mode", ("corrected", "compat"), "corrected"),
    ):
        parser.add_argument(
            f"--{name}", choices=values, default=default, help="rows of gallery_sizes.png"
        )
    add_import_argument(parser)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    return exit_status("plot", partial(_plot, args))


def _plot(args: argparse.Namespace) -> None:
    if args.max_rank < 1:
        raise ValueError("--max-rank must be 1 or more")
    from kd_search.cli._runs import evaluations
    from kd_search.evaluation.search.calibration import calibrate, detections_of_people
    from kd_search.evaluation.search.compare_runs import load_results
    from kd_search.evaluation.search.plot_data import (
        camera_pairs,
        cmc_curve,
        distances,
        open_set_curve,
        precision_recall_curve,
    )
    from kd_search.visualization.search_plots import (
        draw_camera_pairs,
        draw_cmc,
        draw_distances,
        draw_gallery_sizes,
        draw_open_set,
        draw_precision_recall,
        draw_roc,
    )

    files = evaluations(split_labels(args.runs), args.dataset, args.imports)
    folders = {label: os.path.dirname(file) for label, file in files.items()}
    documents = {label: load_results(file) for label, file in files.items()}
    names = {str(document.get("dataset")) for document in documents.values()}
    if len(names) > 1:
        raise ValueError(f"the runs are of different data sets: {', '.join(names)}")
    (title,) = names
    pictures = _Pictures(args.output)
    pictures.draw(
        "gallery_sizes",
        lambda: draw_gallery_sizes(
            {label: _sizes(folder, args) for label, folder in folders.items()}, title
        ),
    )
    pictures.draw(
        "cmc",
        lambda: draw_cmc(
            {label: cmc_curve(d["queries"], args.max_rank) for label, d in documents.items()}, title
        ),
    )
    loaded = _Loaded(args.dataset or title, folders, documents)
    pictures.draw(
        "precision_recall",
        lambda: draw_precision_recall(
            {label: precision_recall_curve(*loaded.run(label)) for label in folders}, title
        ),
    )

    pictures.draw(
        "open_set",
        lambda: draw_open_set({n: open_set_curve(*loaded.run(n)) for n in folders}, title),
    )
    pictures.draw(
        "roc",
        lambda: draw_roc(
            {n: calibrate(*detections_of_people(*loaded.run(n))) for n in folders}, title
        ),
    )
    for label in folders:
        for kind, compute, draw in (
            ("camera_pairs", camera_pairs, draw_camera_pairs),
            ("distances", distances, draw_distances),
        ):
            heading = f"{title}, {label}" if len(folders) > 1 else title
            pictures.draw(
                f"{_file_name(label)}_{kind}" if len(folders) > 1 else kind,
                # Called at once: the names do not change before.
                lambda c=compute, d=draw, n=label, h=heading: d(c(*loaded.run(n)), h),
            )
    print(f"wrote {len(pictures.written)} pictures: {', '.join(pictures.written)}")
    if not pictures.written:
        raise ValueError("nothing could be drawn")


class _Pictures:
    """Writes pictures, and prints why others cannot be drawn."""

    def __init__(self, folder: str):
        self._folder = folder
        self.written: list[str] = []

    def draw(self, name: str, make: Callable) -> None:
        path = os.path.join(self._folder, f"{name}.png")
        try:
            picture = make()
        except (OSError, ValueError) as error:
            print(f"not drawn: {path}: {error}")
            return
        from kd_search.visualization import write_picture

        write_picture(path, picture)
        self.written.append(path)


class _Loaded:
    """Detections of the runs and their data set, read when they are first needed."""

    def __init__(self, dataset: Any, folders: dict, documents: dict):
        self._dataset, self._folders, self._documents = dataset, folders, documents
        self._runs: dict[str, tuple] = {}

    def run(self, label: str) -> tuple:
        """(prepared set, detections, protocol) of a run."""
        from detectron2.data import DatasetCatalog, MetadataCatalog

        from kd_search.evaluation import Protocol, load_detections
        from kd_search.evaluation.search.galleries import headline_gallery
        from kd_search.evaluation.search.predictions import DETECTIONS_FILE
        from kd_search.evaluation.search.test_set import PreparedSet

        if label not in self._runs:
            if self._dataset not in DatasetCatalog.list():
                raise ValueError(f"{self._dataset!r} is not a registered data set; use --dataset")
            path = os.path.join(self._folders[label], DETECTIONS_FILE)
            detections, _ = load_detections(path)
            dicts = DatasetCatalog.get(self._dataset)
            lists = MetadataCatalog.get(self._dataset).get("search_galleries")
            protocol = Protocol(**(self._documents[label].get("protocol") or {}))
            protocol.gallery = headline_gallery(protocol.gallery, list(lists or {}))
            data = PreparedSet(detections, dicts, lists or {}, {protocol.gallery})
            self._runs[label] = data, detections, protocol
        return self._runs[label]


def _sizes(folder: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table of protocols that differ only in the gallery."""
    from kd_search.evaluation.search.protocol_table import read_table_rows

    wanted = {key: getattr(args, key) for key in ("boxes", "cameras", "rerank", "mode")}
    wanted["subset"] = "all"
    rows = read_table_rows(folder)
    rows = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if len(rows) < 2:
        raise ValueError(f"{folder}: has {len(rows)} gallery sizes of this kind; a curve needs two")
    return rows


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "_", label).strip("_") or "run"
