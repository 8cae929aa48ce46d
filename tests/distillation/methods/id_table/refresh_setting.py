"""A student with a distilled table and its live teacher, on a few pictures; also run on ranks."""

import sys
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the helpers of the tests

from tiny_table import write_table  # noqa: E402

from kd_search.data import get_id_map  # noqa: E402
from kd_search.engine import PersonSearchTrainer, launch  # noqa: E402
from kd_search.utils.comm import unwrap_model  # noqa: E402
from tests.distillation.methods.global_knowledge.prototype_setting import (  # noqa: E402
    register,
    setting_cfg,
    write_setting,
)

KEY = "DISTILLATION.ID_TABLE."
KIND = "people"
BLEND = (KEY + "REFRESH_SOURCE", "blend", KEY + "MODE", "momentum")
AVERAGE = (KEY + "REFRESH_AVERAGE", True)


def write_refresh_setting(folder):
    """Pictures, a teacher and a table of random rows that :func:`refresh_cfg` finds."""
    write_setting(folder, KIND)
    person_ids = get_id_map([register(folder, KIND)]).to_list()
    return write_table(folder / "table.pth", num_ids=len(person_ids), person_ids=person_ids)


def refresh_cfg(folder, *overrides, output=None):
    """A student whose distilled table is refreshed after iterations 1, 3 and 5."""
    common = (KEY + "PATH", str(folder / "table.pth"), KEY + "QUEUE", "off")
    common += (KEY + "REFRESH_PERIOD", 2, "MODEL.OIM.ENABLED", False)
    common += ("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.9, 0.9])
    return setting_cfg(folder, KIND, *common, *overrides, output=output, terms=["IDTableTerm"])


def trained(folder, output, *overrides, resume=False, trainer_class=PersonSearchTrainer):
    """A trainer after its training."""
    register(folder, KIND)
    trainer = trainer_class(refresh_cfg(folder, *overrides, output=output))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def term_of(trainer):
    return unwrap_model(trainer.model).terms["IDTableTerm"]


def main(args):
    torch.set_num_threads(1)
    folder = Path(args.opts[0])
    result = {}
    for name, overrides in (("teacher", AVERAGE), ("blend", BLEND)):
        trainer = trained(folder, folder / name, "SOLVER.MAX_ITER", 2, *overrides)
        result[name] = term_of(trainer).state_dict()
        result[f"{name}_student"] = unwrap_model(trainer.model).student.state_dict()
    torch.save(result, folder / f"rank{comm.get_rank()}.pth")


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
