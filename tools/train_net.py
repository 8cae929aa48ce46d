#!/usr/bin/env python
"""Train or evaluate a person search model, or a plain detector.

    python tools/train_net.py --config-file configs/prw/r50_c4.yaml --num-gpus 2
    python tools/train_net.py --config-file ... --resume
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc_per_node 2 tools/train_net.py --config-file ...

Without a GPU, ``--num-gpus`` is the number of CPU processes. Ctrl-C stops after the running
iteration, with a checkpoint; ``--resume`` then goes on as if nothing had happened.
"""

from kd_search.utils.threads import wait_passively

wait_passively()  # before the others load torch

from detectron2.engine import default_argument_parser  # noqa: E402
from detectron2.evaluation import verify_results  # noqa: E402
from detectron2.utils import comm  # noqa: E402

from kd_search.engine import (  # noqa: E402
    PersonSearchCheckpointer,
    PersonSearchTrainer,
    launch,
    setup,
)


def evaluate(cfg, resume: bool):
    """Evaluate MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR."""
    model = PersonSearchTrainer.build_model(cfg)
    checkpointer = PersonSearchCheckpointer(
        model, cfg.OUTPUT_DIR, trust_pickle=cfg.MODEL.TRUST_PICKLE
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = PersonSearchTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args):
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
