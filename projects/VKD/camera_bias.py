#!/usr/bin/env python
"""Measure how well a linear classifier predicts the camera from embeddings of trained networks.

    python projects/VKD/camera_bias.py --rows teacher all --seeds 1 2 3
    python projects/VKD/camera_bias.py --config teacher.yaml student.yaml --weights t.pth s.pth

Takes the options of ablate.py, which has trained the runs, or pairs of config and weights, and
trains no network. A frame's embedding, of unit length where the metric is the cosine, should depend
on the person and not on the camera: views of several cameras are meant to remove that bias. The
classifier (linear_probe.py) is fitted to frames of the training identities
and evaluated on those of the test identities in the same cameras. The table has its accuracy, the
share of the most frequent camera among the test frames ("chance") and the accuracy on the frames it
was fitted to. Writes camera_bias_STUDY.md, .json and .png under --to; results in the .json for the
same weights are reused. With --results, a file for the tables of kd-search results, too.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from linear_probe import REGULARISER, fit_linear_probe, largest_share
from tqdm import tqdm
from vkd_networks import Network, Networks, choose_networks, network_parser, parse_networks
from vkd_study import REPO

from kd_search.data.io.image import ImageError
from kd_search.data.reid import CropMapper, get_reid_samples
from kd_search.data.reid.views import chunk_frames
from kd_search.experiments import TableLayout, draw, markdown, summarise, write_text
from kd_search.experiments.results_file import write_measured
from kd_search.experiments.run_facts import environment_of
from kd_search.experiments.run_folder import now
from kd_search.experiments.study_options import recorded_command
from kd_search.modeling.meta_arch import ReIDNetwork
from kd_search.utils.files import write_json

STEM = "camera_bias"
#: Columns of the table, in percent.
ACCURACY, CHANCE, FITTED = "accuracy", "chance", "accuracy on the fitted frames"
_BATCH = 64
#: What is read of stored results.
_KEYS = ("weights", "row", "seed", "metrics", "test_set", "started", "environment")


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = network_parser(__doc__)
    add = parser.add_argument
    add("--frames", type=int, default=4, help="of a tracklet, one of each of as many equal chunks")
    add("--regulariser", type=float, default=REGULARISER, help="of the squared weights")
    args = parse_networks(parser, argv)
    # A study would go on from that file, and this one holds other measurements.
    args.measured, args.results = args.results and args.results.absolute(), None
    if args.frames < 1:
        parser.error("--frames must be at least 1")
    if not args.regulariser > 0:
        parser.error("--regulariser must be above 0")
    return args


class Frame(NamedTuple):
    file_name: str
    #: XYXY, or ``None`` where the image is the crop.
    box: Optional[tuple]
    camera_id: int


def frames_of(samples: Sequence[dict[str, Any]], count: int) -> list[Frame]:
    """Frames of people with an identity in known cameras, the first of each chunk of a tracklet."""
    frames = []
    for sample in samples:
        if sample["person_id"] < 0 or sample["camera_id"] < 0:
            continue
        names, boxes = sample["file_names"], sample["boxes"]
        for place in sorted(set(chunk_frames(len(names), count))):
            box = None if boxes is None else tuple(boxes[place])
            frames.append(Frame(names[place], box, sample["camera_id"]))
    return frames


@torch.no_grad()
def embed_frames(
    model: ReIDNetwork, cfg: CfgNode, frames: Sequence[Frame], name: str
) -> np.ndarray:
    """(N, D) test embeddings of single frames, of unit length where the metric is the cosine."""
    mapper = CropMapper(cfg, False)
    parts = []
    for start in tqdm(range(0, len(frames), _BATCH), desc=name, leave=False, disable=None):
        batch = frames[start : start + _BATCH]
        crops = torch.stack([mapper(frame.file_name, frame.box) for frame in batch])
        parts.append(model.embed(crops[:, None].to(model.device)).double().cpu().numpy())
    embeddings = np.concatenate(parts)
    if cfg.TEST.REID.METRIC == "cosine":
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        embeddings /= np.where(lengths > 0, lengths, 1.0)
    return embeddings


def measure(network: Network, frames: int, regulariser: float) -> dict[str, Any]:
    """Accuracies of the classifier of one network, in percent.

    Raises:
        ValueError: the sets have no known camera, or none in common.
    """
    started = now()
    model, cfg = network.load()
    train_set, test_set = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    # One set only: camera numbers of several sets are unrelated.
    train = frames_of(get_reid_samples(train_set)[0], frames)
    known = {frame.camera_id for frame in train}
    tested = [s for s in get_reid_samples(test_set)[0] if s["role"] != "train"]
    test = [frame for frame in frames_of(tested, frames) if frame.camera_id in known]
    if len(known) < 2 or not test:
        raise ValueError(
            f"{train_set} has {len(known)} known cameras, {test_set} {len(test)} frames of them: "
            "at least 2 cameras are needed"
        )
    cameras, truth = (np.array([f.camera_id for f in part]) for part in (train, test))
    features = embed_frames(model, cfg, train, f"{network.name}: {train_set}")
    probe = fit_linear_probe(features, cameras, regulariser=regulariser)
    test_features = embed_frames(model, cfg, test, f"{network.name}: {test_set}")
    return {
        "metrics": {
            ACCURACY: 100 * probe.accuracy(test_features, truth),
            CHANCE: 100 * largest_share(truth),
            FITTED: 100 * probe.accuracy(features, cameras),
        },
        "train_set": train_set,
        "test_set": test_set,
        "train_frames": len(train),
        "test_frames": len(test),
        "cameras": sorted(int(camera) for camera in known),
        "started": started,
        "environment": environment_of(cfg),
    }


def measure_all(chosen: Networks, path: Path, frames: int, regulariser: float) -> list[dict]:
    """:func:`measure` of every network, stored in a JSON file; stored results are reused.

    Raises:
        ValueError: as :func:`measure`, or the networks are of several data sets.
    """
    known = _read(path)
    done: list[dict] = []
    for network in tqdm(chosen.networks, desc="networks", disable=None):
        key = {**network.state, "frames": frames, "regulariser": regulariser}
        entry = next((e for e in known if {k: e.get(k) for k in key} == key), None)
        found = {"row": network.row, "seed": network.seed, **key}
        found.update(measure(network, frames, regulariser) if entry is None else {})
        done.append({**(entry or {}), **found})
        # Results of other networks stay, for later calls.
        kept = [e for e in known if all(e["weights"] != d["weights"] for d in done)]
        write_json(path, {"networks": [*done, *kept]})
        sets = {(e["train_set"], e["test_set"]) for e in done}
        if len(sets) > 1:
            raise ValueError(f"{network.name} has other data sets than the first: {sets}")
    return done


def _read(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text())["networks"]
        for entry in entries:
            _ = [entry[key] for key in _KEYS]
        return entries
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a file of this script: remove it") from None


def write(entries: Sequence[dict], chosen: Networks, args: argparse.Namespace) -> str:
    """Write table, picture and the file of --results; the table as Markdown."""
    stem = f"{STEM}{chosen.suffix}"
    rows = list(dict.fromkeys(entry["row"] for entry in entries))
    results = {(e["row"], e["seed"]): e["metrics"] for e in entries}
    layout = TableLayout(metrics=(ACCURACY, CHANCE, FITTED), base=chosen.base, stem=stem)
    table = summarise(rows, results, {}, layout)
    first = entries[0]
    title = (
        f"Accuracy (%) of a linear camera classifier: {len(first['cameras'])} cameras, fitted to "
        f"{first['train_frames']} frames of {first['train_set']}, scored on "
        f"{first['test_frames']} of {first['test_set']}; regulariser {first['regulariser']:g}"
    )
    text = markdown(table, layout, title)
    write_text(chosen.folder / f"{stem}.md", text)
    draw(
        table,
        chosen.folder / f"{stem}.png",
        layout,
        f"Accuracy of a linear camera classifier, {first['test_set']}",
        reference=("most frequent camera", first["metrics"][CHANCE]),
    )
    if args.measured:
        kept = ("row", "seed", "metrics", "started")
        runs = [{**{key: e[key] for key in kept}, **e["environment"]} for e in entries]
        command = recorded_command(args)
        write_measured(args.measured, command, first["test_set"], layout, rows, runs)
    return text


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    try:
        chosen = choose_networks(args)
        path = chosen.folder / f"{STEM}{chosen.suffix}.json"
        entries = measure_all(chosen, path, args.frames, args.regulariser)
        print(write(entries, chosen, args))
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command to go on", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"in {chosen.folder}: {path.stem}.md, {path.stem}.json, {path.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
