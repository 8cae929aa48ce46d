"""Print the gradient norm of each loss of a training at the student's backbone.

    kd-search gradients output/distilled
    kd-search gradients output/distilled --weights output/distilled/model_0000199.pth

Terms of different papers have weights that were chosen for other networks and other data. A loss of
a high value may have hardly any gradient, and one of a low value may dominate the others. For every
loss the tool prints the value, weight included, and the L2 norm of its gradient, as means over
batches of the training set. Weights that change during training, as of losses that fade out, have
their initial values. Nothing is trained, and no file is written but --output.

Exit status: 0 printed, 2 the input cannot be used.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Optional

from kd_search.cli._arguments import add_network_arguments, command_parser, parse


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("gradients", __doc__)
    add = parser.add_argument
    add_network_arguments(parser, weights="model_final.pth of OUTPUT_DIR")
    add("--checkpoint", dest="weights", help=argparse.SUPPRESS)  # its old name
    add("--batches", type=int, default=4, metavar="N", help="default: 4")
    add("--layer", default="backbone", help="of the student, by name (default: backbone)")
    add("--output", metavar="FILE", help="write the numbers there as JSON")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(get_parser(), argv)
    from kd_search.utils.files import write_json

    try:
        found = measure(args)
        if args.output:
            numbers = {name: asdict(gradient) for name, gradient in found.items()}
            write_json(args.output, {"layer": args.layer, "losses": numbers})
    except (OSError, ValueError) as error:
        print(f"gradients: {error}", file=sys.stderr)
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
    from tqdm import tqdm

    from kd_search.checkpoint import load_trained
    from kd_search.cli._runs import network_config
    from kd_search.engine import PersonSearchTrainer, loss_gradients
    from kd_search.engine.train_step import seed_everything

    cfg, weights = network_config(args, eval_only=False)
    seed_everything(max(cfg.SEED, 0), 0)
    model = PersonSearchTrainer.build_model(cfg).train()
    # The weights of terms, such as adapters, are loaded as well.
    load_trained(model, weights, checkpointables=None, trust_pickle=cfg.MODEL.TRUST_PICKLE)
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
