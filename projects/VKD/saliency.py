#!/usr/bin/env python
"""Draw saliency maps of teacher and students, side by side, over pictures of the test set.

    python projects/VKD/saliency.py --rows teacher task all --seeds 1
    python projects/VKD/saliency.py --config teacher.yaml student.yaml --weights t.pth s.pth

Takes the options of ablate.py, which has trained the runs, or pairs of config and weights. A row
for each person: people with pictures in several cameras, at equal distances in the order of the
set, so that the choice is not by hand. The picture is the first frame of a query; the heat is the
share of each place in the margin, the similarity to the person's pictures in other cameras less
that to other people's ("margin"), or in the greatest logit ("logit", as in the authors' code); see
saliency_maps.py. Writes saliency_STUDY_seedN.png under --to, or saliency.png for pairs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from saliency_grid import HeatTile, SaliencyRow, draw_saliency
from saliency_maps import heat, logit_maps, margin_maps
from torch.nn.functional import normalize
from tqdm import tqdm
from vkd_networks import Network, Networks, choose_networks, network_parser, parse_networks
from vkd_study import REPO

from kd_search.data.io.image import ImageError
from kd_search.data.reid import CropMapper, get_reid_samples
from kd_search.modeling.meta_arch import ReIDNetwork
from kd_search.visualization import write_picture

STEM = "saliency"
NOTES = {
    "margin": (
        "Heat: share of each place in the margin, the mean cosine of the picture to this person's "
        "pictures in other cameras less that to other people's, as each network sees them; "
        "negative shares are left out, and each map is scaled to its own greatest value."
    ),
    "logit": (
        "Heat: share of each place in the greatest logit, of the training identity that the "
        "picture resembles most; negative shares are left out, and each map is scaled to its own "
        "greatest value."
    ),
}
#: Pictures of other people that a picture is compared with.
NUM_OTHERS = 200
_BATCH = 64


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = network_parser(__doc__)
    add = parser.add_argument
    add("--people", type=int, default=6, help="rows of the picture")
    add("--of", choices=list(NOTES), default="margin", help="what the heat is a share of")
    args = parse_networks(parser, argv)
    if args.people < 1:
        parser.error("--people must be at least 1")
    return args


class Person(NamedTuple):
    """A picture and those that it is compared with: samples of a data set."""

    picture: dict[str, Any]
    own: Sequence[dict[str, Any]]
    others: Sequence[dict[str, Any]]


def choose_people(samples: Sequence[dict[str, Any]], count: int) -> list[Person]:
    """People at equal distances in the order of the set, both ends included.

    The picture of a person is the first query, ``own`` what it searches for: pictures in other
    cameras, or any others where its camera is not known. ``others`` are :data:`NUM_OTHERS` pictures
    of other people, at equal distances too.

    Args:
        samples: dataset dicts of a test set.
        count: of people; fewer if there are fewer.

    Raises:
        ValueError: no person has a picture to compare a query with.
    """
    tested = [s for s in samples if s["role"] != "train" and s["person_id"] >= 0]
    by_id: dict[int, list[dict]] = {}
    for sample in tested:
        by_id.setdefault(sample["person_id"], []).append(sample)
    people = []
    for person_id, pictures in sorted(by_id.items()):
        query = next((s for s in pictures if s["role"] in ("query", "both")), None)
        if query is None:
            continue
        camera = query["camera_id"]
        known = camera >= 0
        own = [s for s in pictures if s is not query and not (known and s["camera_id"] == camera)]
        others = [s for s in tested if s["person_id"] != person_id]
        if own and others:
            people.append(Person(query, own, _evenly(others, NUM_OTHERS)))
    if not people:
        raise ValueError(
            "no person of the test set has a query, a picture in another camera, and others"
        )
    return _evenly(people, count)


def _evenly(items: Sequence, count: int) -> list:
    """Up to ``count`` of the items, at equal distances from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


class _Loaded(NamedTuple):
    model: ReIDNetwork
    cfg: CfgNode
    mapper: CropMapper

    def crops(self, samples: Sequence[dict]) -> torch.Tensor:
        """(P, 3, H, W) first frames, preprocessed for this network."""
        boxes = [None if s["boxes"] is None else tuple(s["boxes"][0]) for s in samples]
        crops = [self.mapper(s["file_names"][0], box) for s, box in zip(samples, boxes)]
        return torch.stack(crops).to(self.model.device)

    @torch.no_grad()
    def mean_embedding(self, samples: Sequence[dict]) -> torch.Tensor:
        """(D,) mean of the embeddings, each of unit length."""
        parts = [samples[i : i + _BATCH] for i in range(0, len(samples), _BATCH)]
        embeddings = torch.cat([self.model.embed(self.crops(part)[:, None]) for part in parts])
        return normalize(embeddings, dim=1).mean(dim=0)


def _load(network: Network) -> _Loaded:
    model, cfg = network.load()
    return _Loaded(model, cfg, CropMapper(cfg, False))


def tiles_of(network: _Loaded, people: Sequence[Person], of: str) -> list[HeatTile]:
    """Heat of one network for each picture."""
    crops = network.crops([person.picture for person in people])
    if of == "logit":
        maps, scores = logit_maps(network.model, crops)
    else:
        own = torch.stack([network.mean_embedding(person.own) for person in people])
        others = torch.stack([network.mean_embedding(person.others) for person in people])
        maps, scores = margin_maps(network.model, crops, own, others)
    heats = heat(maps, (crops.shape[2], crops.shape[3])).cpu().numpy()
    return [HeatTile(h, f"{of} {score:.3f}") for h, score in zip(heats, scores.tolist())]


def draw(networks: Sequence[Network], names: Sequence[str], num_people: int, of: str) -> np.ndarray:
    """The picture of some networks, a column each; see :func:`draw_saliency`.

    Raises:
        ValueError: the networks are of several test sets, or no person can be drawn.
    """
    loaded = [_load(network) for network in tqdm(networks, desc="networks", disable=None)]
    sets = list(dict.fromkeys(one.cfg.DATASETS.TEST[0] for one in loaded))
    if len(sets) > 1:
        raise ValueError(f"the networks are of several test sets: {', '.join(sets)}")
    samples, ids = get_reid_samples(sets[0])
    people = choose_people(samples, num_people)
    columns = [tiles_of(one, people, of) for one in loaded]
    originals = ids.to_list()
    pictures = loaded[0].crops([person.picture for person in people]).cpu()
    if loaded[0].cfg.INPUT.FORMAT == "BGR":
        pictures = pictures.flip(1)
    rows = []
    for number, (person, picture) in enumerate(zip(people, pictures.permute(0, 2, 3, 1))):
        row, camera = person.picture["person_id"], person.picture["camera_id"]
        caption = f"id {originals[row]}, camera {camera}" if camera >= 0 else f"id {originals[row]}"
        tiles = [column[number] for column in columns]
        rows.append(SaliencyRow(picture.numpy(), caption, tiles))
    return draw_saliency(rows, names, f"Saliency ({of}), {sets[0]}", note=NOTES[of])


def pictures_of(chosen: Networks) -> dict[str, tuple[list[Network], list[str]]]:
    """File stem of each picture to its networks and the heads of their columns: a picture for each
    seed of a study, one for all other networks."""
    if not chosen.suffix:
        alike = len({n.row for n in chosen.networks}) < len(chosen.networks)
        names = [n.name if alike else n.row for n in chosen.networks]
        return {STEM: (list(chosen.networks), names)}
    pictures = {}
    for seed in dict.fromkeys(network.seed for network in chosen.networks):
        own = [network for network in chosen.networks if network.seed == seed]
        pictures[f"{STEM}{chosen.suffix}_seed{seed}"] = own, [network.row for network in own]
    return pictures


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    try:
        chosen = choose_networks(args)
        for stem, (networks, names) in pictures_of(chosen).items():
            path = chosen.folder / f"{stem}.png"
            write_picture(str(path), draw(networks, names, args.people, args.of))
            print(f"wrote {path}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ImageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
