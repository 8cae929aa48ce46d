#!/usr/bin/env python3
"""Print the gradient norm of each loss of a training at the student's backbone.

    python tools/loss_gradients.py \\
        --config-file output/distilled/config.yaml --checkpoint output/distilled/model_0000199.pth

Terms of different papers have weights that were chosen for other networks and other data. A loss of
a high value may have hardly any gradient, and one of a low value may dominate the others. For every
loss the tool prints the value, weight included, and the L2 norm of its gradient, as means over
batches of the training set. Weights that change during training, as of losses that fade out, have
their initial values. Nothing is trained, and no file is written but --output.

Exit status: 0 printed, 2 the input cannot be used.
"""
# ruff: noqa: E402

from kd_search.utils.threads import wait_passively

wait_passively()  # before anything imports torch

import argparse
import itertools
import os
import sys
from dataclasses import asdict
from typing import Optional

from tqdm import tqdm

from kd_search.checkpoint import load_trained
from kd_search.config import import_modules
from kd_search.engine import PersonSearchTrainer, build_config, loss_gradients
from kd_search.engine.defaults import add_import_argument
from kd_search.engine.train_step import seed_everything
from kd_search.utils.files import write_json


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, help="of the training, such as config.yaml of its folder")
    add("--checkpoint", help="default: model_final.pth of the config's OUTPUT_DIR")
    add("--batches", type=int, default=4, metavar="N", help="default: 4")
    add("--layer", default="backbone", help="of the student, by name (default: backbone)")
    add("--output", metavar="FILE", help="write the numbers there as JSON")
    add_import_argument(parser)
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser


def main(argv: Optional[list[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        found = measure(args)
        if args.output:
            numbers = {name: asdict(gradient) for name, gradient in found.items()}
            write_json(args.output, {"layer": args.layer, "losses": numbers})
    except (OSError, ValueError) as error:
        print(f"loss_gradients: {error}", file=sys.stderr)
        return 2
    width = max(map(len, found))
    print(f"{'loss':{width}}  {'value':>9}  gradient at {args.layer}")
    for name, gradient in sorted(found.items(), key=lambda item: -item[1].norm):
        print(f"{name:{width}}  {gradient.value:9.4f}  {gradient.norm:9.4f}")
    return 0


def measure(args: argparse.Namespace) -> dict:
    """Compute the gradients for the command line; see :func:`kd_search.engine.loss_gradients`.

    Raises:
        FileNotFoundError, ValueError: the input cannot be used; one line.
    """
    if args.batches < 1:
        raise ValueError("--batches must be 1 or more")
    import_modules(args.imports)
    cfg = build_config(args.config_file, args.opts)
    seed_everything(max(cfg.SEED, 0), 0)
    model = PersonSearchTrainer.build_model(cfg).train()
    checkpoint = args.checkpoint or os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    # The weights of terms, such as adapters, are loaded as well.
    load_trained(model, checkpoint, checkpointables=None, trust_pickle=cfg.MODEL.TRUST_PICKLE)
    student = getattr(model, "student", model)
    named = student.named_parameters()
    parameters = [p for name, p in named if f"{name}.".startswith(f"{args.layer}.")]
    if not parameters:
        parts = ", ".join(name for name, _ in student.named_children())
        raise ValueError(f"--layer {args.layer}: the student has no such layer, only {parts}")
    # As in training: companions such as a re-ID teacher need the original images.
    cfg.defrost()
    cfg.INPUT.WITH_ORIGINAL_IMAGE |= getattr(model, "needs_original_images", False)
    batches = itertools.islice(PersonSearchTrainer.build_train_loader(cfg), args.batches)
    bar = tqdm(batches, total=args.batches, desc="gradients", unit="batch", disable=None)
    return loss_gradients(model, bar, parameters)


if __name__ == "__main__":
    sys.exit(main())
