"""Trained networks to analyse: the runs of a study, or configs with weights."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode
from vkd_study import make_study, study_parser

from kd_search.checkpoint import load_trained
from kd_search.engine import PersonSearchTrainer
from kd_search.experiments import TEACHER, StudyParser, build_run_config, finished_study
from kd_search.modeling.meta_arch import ReIDNetwork

COMPARED = Path("output/vkd/compared")


@dataclass(frozen=True)
class Network:
    """A trained network; those of one row differ in their seed."""

    row: str
    seed: int
    config_file: str
    #: KEY VALUE overrides.
    opts: Sequence[Any]
    weights: Path

    @property
    def name(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def state(self) -> dict[str, Any]:
        """Weights file and its modification time, to recognise retrained networks."""
        modified = self.weights.stat().st_mtime_ns
        return {"weights": str(self.weights.absolute()), "weights_modified": modified}

    def load(self) -> tuple[ReIDNetwork, CfgNode]:
        """The network in evaluation mode, and its config.

        Raises:
            FileNotFoundError, ValueError: config or weights are missing or do not match.
        """
        opts = list(map(str, self.opts))
        cfg = build_run_config(self.config_file, opts, self.weights.parent, eval_only=True)
        if cfg.MODEL.META_ARCHITECTURE != "ReIDNetwork":
            raise ValueError(
                f"{self.config_file}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is no "
                "re-ID network"
            )
        model: Any = PersonSearchTrainer.build_model(cfg).eval()
        load_trained(model, str(self.weights))
        return model, cfg


@dataclass(frozen=True)
class Networks:
    """Networks that a script analyses, and where it writes."""

    networks: Sequence[Network]
    #: Row that the others are compared with.
    base: str
    #: Folder of the results.
    folder: Path
    #: Ends the names of the files: "_terms", or "" without a study.
    suffix: str


def network_parser(description: str) -> StudyParser:
    """A parser with the options of a study; --config, --weights and --names instead of one; and
    --to."""
    parser = study_parser(description)
    add = parser.add_argument
    add("--config", nargs="+", default=[], metavar="FILE", help="configs, instead of a study")
    add("--weights", nargs="+", default=[], type=Path, metavar="FILE", help="of each config")
    add("--names", nargs="+", default=[], metavar="NAME", help="of each; alike: seeds of one row")
    add("--to", type=Path, help=f"folder of results; default: that of the study, or {COMPARED}")
    return parser


def parse_networks(parser: StudyParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse and check the options of :func:`network_parser`, and fill in defaults."""
    args = parser.parse_args(argv)
    if len(args.config) != len(args.weights):
        parser.error("--config and --weights must name as many files")
    if args.names and len(args.names) != len(args.config):
        parser.error("--names must name each of --config")
    # The scripts change to the checkout, where the study's own files are.
    args.config = [str(Path(path).absolute()) for path in args.config]
    args.weights = [path.absolute() for path in args.weights]
    args.to = args.to and args.to.absolute()
    args.names = args.names or [Path(path).stem for path in args.config]
    args.to = args.to or (COMPARED if args.config else args.output)
    return args


def choose_networks(args: argparse.Namespace) -> Networks:
    """The networks of --config and --weights, or the finished runs of the study.

    Raises:
        ValueError: no run is finished, or what is wrong with the options of the study.
        FileNotFoundError: a config or weights are missing.
    """
    folder = args.to.absolute()
    if args.config:
        return Networks(_pairs(args), args.names[0], folder, "")
    study = finished_study(make_study, args)
    runs = {key: study.runs[key] for key in study.finished()}
    if not runs:
        raise ValueError(f"{study.output} has no finished run: start ablate.py first")
    networks = [
        Network(row, seed, run.config_file, run.opts, run.weights)
        for (row, seed), run in runs.items()
    ]
    return Networks(networks, TEACHER, folder, f"_{args.study}")


def _pairs(args: argparse.Namespace) -> list[Network]:
    networks: list[Network] = []
    for name, config, weights in zip(args.names, args.config, args.weights):
        if not weights.is_file():
            raise FileNotFoundError(f"--weights: there is no file {weights}")
        seed = 1 + sum(network.row == name for network in networks)
        networks.append(Network(name, seed, config, args.opts, weights))
    return networks
