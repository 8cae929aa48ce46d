"""Prototypes of several ranks; run by test_generation.py, writes one file per rank."""

import sys
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the helpers of the tests

from kd_search.distillation.methods.global_knowledge.generation import PrototypeGeneration  # noqa: E402
from kd_search.engine import PersonSearchTrainer, launch  # noqa: E402
from kd_search.utils.comm import unwrap_model  # noqa: E402
from tests.distillation.methods.global_knowledge.prototype_setting import (  # noqa: E402
    CLUSTERS,
    register,
    setting_cfg,
)


def prototypes_of(folder: Path, kind: str, *overrides) -> dict:
    register(folder, kind)
    cfg = setting_cfg(folder, kind, *overrides)
    torch.manual_seed(0)
    distiller = PersonSearchTrainer.build_model(cfg)
    for prototypes in PrototypeGeneration(cfg, distiller, cfg.SEED).pick():
        distiller.companions["PrototypeBank"].put(*prototypes)
    return distiller.companions["PrototypeBank"].state_dict()


def error_of(folder: Path) -> str:
    try:
        prototypes_of(folder, "rcnn")
    except ValueError as error:
        return str(error)
    return ""


def trained(folder: Path, output: Path) -> dict:
    register(folder, "rcnn")
    trainer = PersonSearchTrainer(setting_cfg(folder, "rcnn", "SOLVER.MAX_ITER", 3, output=output))
    trainer.resume_or_load(resume=False)
    trainer.train()
    return unwrap_model(trainer.model).companions["PrototypeBank"].state_dict()


def main(args):
    torch.set_num_threads(1)
    folder = Path(args.opts[0])
    result = {
        "rcnn": prototypes_of(folder / "rcnn", "rcnn"),
        "people": prototypes_of(folder / "people", "people", *CLUSTERS),
        "trained": trained(folder / "rcnn", folder / "output"),
        "error": error_of(folder / "truncated"),
    }
    torch.save(result, folder / f"rank{comm.get_rank()}.pth")


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
