"""Script of test_ranks.py: writes what two ranks must agree on, one JSON file per rank."""

import json
import sys
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from kd_search.engine import IDTableAgreementHook, compute_identity_means, launch
from kd_search.engine.parallel import id_tables
from tests.engine.toy import ToyDistillerTrainer, ToyLoader, ToyNetwork, toy_cfg, toy_input, trained


def train_with_a_nan_on_one_rank(folder) -> dict:
    trainer = trained(ToyDistillerTrainer, toy_cfg(folder, "SOLVER.BASE_LR", 0.01))
    network = trainer.model.module
    resumed = ToyDistillerTrainer(toy_cfg(folder, "SOLVER.MAX_ITER", 8))
    resumed.resume_or_load(resume=True)
    return {
        "class": type(trainer.model).__name__,
        "parameters": [p.detach().double().sum().item() for p in network.parameters()],
        "tables": {name: t.fingerprint() for name, t in id_tables(network).items()},
        "finite": all(bool(torch.isfinite(v).all()) for v in network.state_dict().values()),
        "skipped": trainer._trainer.skipped_steps,
        "resumed_at": resumed.start_iter,
        "local": [comm.get_local_rank(), comm.get_local_size()],
    }


def too_many_in_a_row(trainer_folder) -> str:
    trainer = ToyDistillerTrainer(toy_cfg(trainer_folder))
    step = trainer._trainer
    loader = iter(ToyLoader(0, poison=[(i, 1) for i in range(3)]))
    with EventStorage():
        try:
            for iteration in range(4):
                step.run(next(loader), iteration)
        except FloatingPointError as error:
            return str(error)
    return ""


def means_over_ranks() -> dict:
    torch.manual_seed(0)
    network = ToyNetwork()
    images = [toy_input(1, i) for i in range(7)]
    own = images[:5] if comm.get_rank() == 0 else images[5:]
    means = compute_identity_means(network, [[x] for x in own], 5)
    return {"rows": means.rows.tolist(), "counts": means.counts.tolist()}


def differing_tables_are_found() -> str:
    network = ToyNetwork()
    network.id_table.queue.fill_(comm.get_rank())
    hook = IDTableAgreementHook(id_tables(network), period=1)
    hook.trainer = type("Trainer", (), {"iter": 4})
    try:
        hook.after_step()
    except RuntimeError as error:
        return str(error)
    return ""


def main(args):
    torch.set_num_threads(1)
    folder = Path(args.opts[0])
    result = {
        "training": train_with_a_nan_on_one_rank(folder / "train"),
        "error": too_many_in_a_row(folder / "error"),
        "means": means_over_ranks(),
        "agreement": differing_tables_are_found(),
    }
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(result))
    if args.eval_only and comm.get_rank() == 1:
        sys.exit(2)


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
