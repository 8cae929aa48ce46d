"""The data of a project: where they are, which defects stop it, and what is in them."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
from detectron2.data import DatasetCatalog

from kd_search.data.builtin import release_files
from kd_search.data.check import DatasetReport
from kd_search.data.person_search.check import check_split
from kd_search.data.person_search.held_out import hold_out_people, write_queries_of
from kd_search.data.person_search.mot import MOTFiles, parse_motchallenge_entry
from kd_search.data.person_search.mot_sequence import find_sequences, read_sequence, sequence_name
from kd_search.data.person_search.register import SplitFiles
from kd_search.data.person_search.split import LoadedSplit, SplitSource
from kd_search.data.records import non_crowd

#: Defects that do not stop a project, and what becomes of them. Any other kind does.
TOLERATED = {
    "box_out_of_image": "clipped to the image",
    "box_empty": "left out",
    "id_twice_in_image": "both boxes count as the person",
    "id_in_one_image": "hardly helps in training, and has no match in a test set",
    "query_out_of_image": "clipped to the image",
    "query_not_annotated": "searched as it is",
    "query_without_match": "left out of all means",
}
#: Lines of each kind of defect that are printed.
_SHOWN = 3
#: A twentieth of the frames of MOT17 at 30 frames a second is still twice the training set of
#: PRW-c6, on which the small networks were tried: more frames a second show the same.
_FRAMES, _MAX_STEP = 1000, 10


@dataclass
class DataSets:
    """Training and test set of a project."""

    #: Names of the sets by split: "train" and "test".
    names: dict[str, str]
    #: Key and value of the config that registers them.
    key: str
    entries: list[list[str]]
    sources: dict[str, SplitSource]
    #: What was decided about the data: (what, value, why).
    notes: list[tuple[str, str, str]] = field(default_factory=list)

    def load(self, *, clip: bool) -> tuple[LoadedSplit, LoadedSplit]:
        """Both splits, see :class:`~kd_search.data.person_search.split.SplitSource`."""
        splits = []
        for split in ("train", "test"):
            loaded = self.sources[split].load(clip=clip)
            loaded.name, loaded.id_space = self.names[split], self.sources[split].id_space
            splits.append(loaded)
        return splits[0], splits[1]


def names_of_sets(folder: Path, test: str = "test") -> dict[str, str]:
    """Names for the sets of a project that no registered set has."""
    stem = re.sub(r"\W+", "_", folder.name).strip("_") or "own"
    while {f"{stem}_train", f"{stem}_{test}"} & set(DatasetCatalog.list()):
        stem = f"own_{stem}"
    return {"train": f"{stem}_train", "test": f"{stem}_{test}"}


def coco_sets(
    folder: Path,
    train: str,
    images: str,
    test: Optional[str] = None,
    test_images: Optional[str] = None,
    queries: Optional[str] = None,
    *,
    seed: int,
) -> DataSets:
    """The sets of COCO-JSON files with ``person_id``.

    Without a test file, people of the training file are held out: two files are written to
    ``split/`` of the project, see :func:`.held_out.hold_out_people`. Without a query file,
    ``queries.txt`` is written there, see :func:`.held_out.write_queries_of`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken, or the people cannot be divided.
    """
    for option, path in (("--images", images), ("--test-images", test_images)):
        if path and not os.path.isdir(path):
            raise FileNotFoundError(f"{option} {path}: no such folder")
    notes = []
    if queries and not test:
        raise ValueError("--queries are those of a test set: name its file with --test")
    names = names_of_sets(folder, "val" if test is None else "test")
    if test is None:
        if test_images:
            raise ValueError("--test-images belongs to --test")
        held = hold_out_people(train, folder / "split", seed=seed)
        train, test = str(held.train), str(held.test)
        notes.append(("test set", f"{held.people} people of {held.train}", held.why))
    places = {"train": (train, images), "test": (test, test_images or images)}
    if queries is None:
        queries = str(folder / "split" / "queries.txt")
        loaded = SplitFiles(*places["test"]).load(clip=True)
        count, people = write_queries_of(loaded, queries)
        why = "none were given: the first and the last picture of everybody who is in two or more"
        notes.append(("queries", f"{count} of {people} people", why))
    entries = [[names["train"], *places["train"]], [names["test"], *places["test"], queries]]
    sources = {split: SplitFiles(*entry[1:]) for split, entry in zip(("train", "test"), entries)}
    return DataSets(names, "DATASETS.PERSON_SEARCH_COCO", entries, dict(sources), notes)


def release_sets(folder: Path, release: str, root: str) -> DataSets:
    """The sets of a folder of PRW ("prw") or CUHK-SYSU ("cuhk_sysu")."""
    names = names_of_sets(folder)
    entries = [[names[split], release, root, split] for split in ("train", "test")]
    sources = {entry[3]: release_files(*entry) for entry in entries}
    return DataSets(names, "DATASETS.PERSON_SEARCH_RELEASES", entries, sources)


def mot_sets(folder: Path, root: str, options: Sequence[str] = ()) -> DataSets:
    """The sets of a MOTChallenge folder: whole sequences for training, others for the test.

    Args:
        options: "option=value" of :class:`~kd_search.data.person_search.mot.MOTFiles`, for both.

    Raises:
        FileNotFoundError, ValueError: there are fewer than two sequences, or they share people.
    """
    _, _, given = parse_motchallenge_entry(["", root, *options])
    folders, _ = find_sequences(root, given.pop("sequences", ()))
    options = [option for option in options if not option.startswith("sequences=")]
    found = [read_sequence(path) for path in folders]
    if len(found) < 2:
        raise ValueError(
            f"--mot {root}: one sequence cannot be divided into people to train with and others to "
            "test with: convert it (kd-search convert --format coco) and use --train"
        )
    if any(sequence.info.shared_ids for sequence in found):
        raise ValueError(
            f"--mot {root}: the sequences share people (shared_ids of seqinfo.ini): convert them "
            "(kd-search convert --format coco) and use --train"
        )
    # A quarter of the frames or less, of the shortest sequences: as many people train as can.
    by_length = sorted(found, key=lambda sequence: len(sequence.frames))
    total, held = sum(len(sequence.frames) for sequence in found), 0
    test: list[str] = []
    for sequence in by_length[:-1]:
        if test and held + len(sequence.frames) > total / 4:
            break
        test.append(sequence_name(sequence.folder))
        held += len(sequence.frames)
    train = [s.name for s in found if s.name not in test]
    notes = [
        (
            "test set",
            f"the sequences {', '.join(sorted(test))}",
            "the benchmark publishes no people of its test sequences: the shortest of the others, "
            "up to a quarter of the frames, whose people are in no training frame",
        )
    ]
    if "frame_step" not in given:
        step = max(1, min(_MAX_STEP, total // _FRAMES))
        if step > 1:
            options.append(f"frame_step={step}")
            why = f"of {total} frames; neighbours show nearly the same"
            notes.append(("frames", f"every {step}th", why))
    names = names_of_sets(folder)
    entries = [
        [names["train"], root, f"sequences={','.join(train)}", *options],
        [names["test"], root, f"sequences={','.join(sorted(test))}", "queries=yes", *options],
    ]
    sources: dict[str, SplitSource] = {}
    for split, entry in zip(("train", "test"), entries):
        _, _, arguments = parse_motchallenge_entry(entry)
        sources[split] = MOTFiles(root, **arguments)
    return DataSets(names, "DATASETS.PERSON_SEARCH_MOT", entries, sources, notes)


# The check ---------------------------------------------------------------------------------------


def check_data(
    train: LoadedSplit,
    test: LoadedSplit,
    *,
    decode: bool = True,
    max_pixels: int,
    say: Callable[[str], None] = print,
) -> list[DatasetReport]:
    """The reports of both splits, loaded with ``clip=False``, after printing them in short.

    Raises:
        ValueError: training could not use the data, or the test would mean nothing; the lines name
            every reason.
    """
    reports = []
    for split, partner in ((train, test), (test, train)):
        report = check_split(split, partner=partner, decode=decode, max_pixels=max_pixels)
        reports.append(report)
        say(shortened(report))
    refused = [line for report in reports for line in _refusals(report)]
    without = reports[1].by_kind().get("query_without_match", 0)
    for split, need, count in (
        (train, "people with an identity", reports[0].counts["identities"]),
        (test, "queries with a match", reports[1].counts["queries"] - without),
    ):
        if count < 2:
            refused.append(f"{split.name} has {count} {need}: 2 or more are needed")
    if refused:
        raise ValueError("the data cannot be used:\n  " + "\n  ".join(refused))
    return reports


def shortened(report: DatasetReport) -> str:
    """Counts of a report, and the first defects of each kind."""
    counts = ", ".join(
        f"{value:,} {key.replace('_', ' ')}" for key, value in report.counts.items() if value
    )
    lines = [f"{report.name}: {counts}"]
    for kind, number in report.by_kind().items():
        outcome = TOLERATED.get(kind, "must be mended")
        lines.append(f"  {number} {kind} ({outcome})")
        lines += [f"    {d.where}: {d.message}" for d in report.defects if d.kind == kind][:_SHOWN]
    return "\n".join(lines)


def _refusals(report: DatasetReport) -> list[str]:
    lines = []
    for kind, number in report.by_kind().items():
        if kind not in TOLERATED:
            found = [d for d in report.defects if d.kind == kind]
            lines += [f"{report.name}: {kind}: {d.where}: {d.message}" for d in found[:_SHOWN]]
            if number > _SHOWN:
                lines.append(f"{report.name}: {kind}: {number - _SHOWN} more")
    return lines


# What is in them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Numbers of a training set that settings are chosen by."""

    images: int
    identities: int
    #: Boxes of people with an identity.
    labelled: int
    unlabelled: int
    #: Shorter side of the pictures, median, in pixels.
    short_side: int
    #: Longer divided by shorter side, median.
    aspect: float
    #: Height of people, median, and the range of the root of their area: 5th and 99th percentile.
    height: float
    small: float
    large: float
    #: Largest number of people in a picture.
    crowd: int


def statistics_of(dicts: Sequence[Mapping[str, Any]]) -> Statistics:
    """Statistics of the dataset dicts of a training set with a person in it."""
    people = [annotation for record in dicts for annotation in non_crowd(dict(record))]
    boxes = np.array([annotation["bbox"] for annotation in people], dtype=np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    small, large = np.percentile(np.sqrt(sides.prod(axis=1)), [5, 99])
    ids = Counter(a["person_id"] for a in people if a["person_id"] >= 0)
    return Statistics(
        images=sum(bool(record["annotations"]) for record in dicts),
        identities=len(ids),
        labelled=sum(ids.values()),
        unlabelled=len(people) - sum(ids.values()),
        short_side=int(np.median([min(d["width"], d["height"]) for d in dicts])),
        aspect=float(np.median([_aspect(record) for record in dicts])),
        height=float(np.median(sides[:, 1])),
        small=float(small),
        large=float(large),
        crowd=max(len(non_crowd(dict(record))) for record in dicts),
    )


def _aspect(record: Mapping[str, Any]) -> float:
    sides = sorted((record["width"], record["height"]))
    return float(sides[1] / sides[0])
