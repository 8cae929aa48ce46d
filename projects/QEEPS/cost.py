#!/usr/bin/env python
"""Measure what a query-guided search costs beside a plain one.

    python projects/QEEPS/cost.py --config-file projects/QEEPS/configs/prw_c6/qeeps_r18w50_c4.yaml

Networks have random weights and pictures are noise: a network's time hardly depends on either, but
on the number of regions, which is that of the config. One thread, medians. A plain search runs the
network once for each picture, however many queries there are; a query-guided one for each query
and picture. The costs of larger galleries are products, as both grow with the number of pictures.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Optional

import qeeps  # noqa: F401  registers keys and networks
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from kd_search.config import get_cfg
from kd_search.config.files import merge_config_file

GALLERIES = (1000, 6112)


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of a call, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@torch.no_grad()
def measure(cfg: CfgNode, repeats: int) -> dict[str, float]:
    """Seconds of one picture: plain, and query-guided with either stream of the query."""
    height, width = cfg.INPUT.MIN_SIZE_TEST, round(cfg.INPUT.MIN_SIZE_TEST * 5 / 4)
    noise = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    picture = {"image": noise, "height": height, "width": width}
    box = torch.tensor([width * 0.4, height * 0.2, width * 0.6, height * 0.9])
    found = {}
    for name, arch, stream in (
        ("plain", "PersonSearchRCNN", "pair"),
        ("pair", "QueryGuidedRCNN", "pair"),
        ("self", "QueryGuidedRCNN", "self"),
    ):
        own = cfg.clone()
        own.MODEL.META_ARCHITECTURE, own.MODEL.QUERY_GUIDED.GATES.QUERY_STREAM = arch, stream
        torch.manual_seed(0)
        model = build_model(own).eval()
        if name == "plain":
            found[name] = median_seconds(partial(model, [picture]), repeats)
            continue
        query = model.prepare_query(noise, box)
        found[name] = median_seconds(partial(model.search, query, [picture]), repeats)
    return found


def main(argv: Optional[list[str]] = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--queries", type=int, default=30, help="default: 30, as PRW-mini")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cfg = get_cfg()
    merge_config_file(cfg, args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.DEVICE, cfg.MODEL.OIM.NUM_IDS = "cpu", max(cfg.MODEL.OIM.NUM_IDS, 1)
    seconds = measure(cfg, args.repeats)
    for name, value in seconds.items():
        print(f"{name:6} {1000 * value:8.1f} ms a picture, {value / seconds['plain']:.2f} of plain")
    for size in GALLERIES:
        whole = {n: size * s * (1 if n == "plain" else args.queries) for n, s in seconds.items()}
        text = ", ".join(f"{n} {s / 60:.1f} min" for n, s in whole.items())
        print(f"{args.queries} queries, {size:,} pictures: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
