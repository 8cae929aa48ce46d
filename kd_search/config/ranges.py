"""Checks of the values of config keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.config import CfgNode

#: Predicate, its description, and the keys whose values, or elements of lists, it must hold for.
#: Other checks, such as of two keys or of names, are made by the code that uses the keys.
_RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (
        lambda value: value >= 1,
        "1 or more",
        (
            "SOLVER.MAX_ITER",
            "SOLVER.STEPS",
            "SOLVER.IMS_PER_BATCH",
            "SOLVER.MAX_SKIPPED_STEPS",
            "INPUT.MAX_SIZE_TRAIN",
            "INPUT.MAX_SIZE_TEST",
            "INPUT.MAX_IMAGE_PIXELS",
            "REID_DATA.SIZE",
            "REID_DATA.IDS_PER_BATCH",
            "REID_DATA.VIEWS.NUM",
            "REID_DATA.TEST.BATCH_SIZE",
            "MODEL.REID_HEAD.EMBEDDING_DIM",
            "MODEL.REID_HEAD.NUM_STRIPES",
            "MODEL.REID_HEAD.POOLER_RESOLUTION",
            "TEST.PRECISE_BN.NUM_ITER",
            "TEST.PERSON_SEARCH.TOP_K",
            "TEST.PERSON_SEARCH.CBGM_K1",
            "TEST.PERSON_SEARCH.CBGM_K2",
            "TEST.REID.TOP_K",
        ),
    ),
    (
        lambda value: value >= 0,
        "0 or more",
        (
            "SOLVER.BASE_LR",
            "SOLVER.WEIGHT_DECAY",
            "SOLVER.WEIGHT_DECAY_NORM",
            "SOLVER.WEIGHT_DECAY_BIAS",
            "SOLVER.BIAS_LR_FACTOR",
            "SOLVER.GAMMA",
            "SOLVER.WARMUP_FACTOR",
            "SOLVER.WARMUP_ITERS",
            "SOLVER.CHECKPOINT_PERIOD",
            "SOLVER.CHECKPOINTS_TO_KEEP",
            "SOLVER.REFERENCE_WORLD_SIZE",
            "DATALOADER.NUM_WORKERS",
            "DATALOADER.REPEAT_THRESHOLD",
            "INPUT.MIN_SIZE_TRAIN",
            "INPUT.MIN_SIZE_TEST",
            "REID_DATA.PAD",
            "REID_DATA.TEST.FRAMES",
            "MODEL.OIM.NUM_IDS",
            "MODEL.OIM.QUEUE_SIZE",
            "MODEL.OIM.REFRESH_PERIOD",
            "MODEL.REID_HEAD.NUM_CONV",
            "MODEL.REID_NETWORK.NUM_IDS",
            "TEST.EVAL_PERIOD",
            "TEST.PERSON_SEARCH.BOOTSTRAP",
        ),
    ),
    (
        lambda value: value > 0,
        "above 0",
        (
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
            "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
            "MODEL.OIM.TEMPERATURE",
            "MODEL.RESNETS.WIDTH_MULTIPLIER",
            "MODEL.TORCHVISION.WIDTH_MULTIPLIER",
            "REID_DATA.ERASING_SCALE",
            "REID_DATA.ERASING_RATIO",
        ),
    ),
    (
        lambda value: 0 <= value <= 1,
        "from 0 to 1",
        (
            "INPUT.MAX_SKIPPED_FRACTION",
            "REID_DATA.FLIP_PROB",
            "REID_DATA.ERASING_PROB",
            "MODEL.OIM.MOMENTUM",
            "TEST.PERSON_SEARCH.IOU_THRESH",
        ),
    ),
    (lambda value: 0 <= value < 1, "from 0 on, and below 1", ("SOLVER.MOMENTUM",)),
)
#: The p of a norm may be infinite.
_MAY_BE_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)
_INT64 = 2**63
#: NumPy's generators take seeds below this; each rank of Detectron2 adds its number.
_SEEDS = 2**32


def check_ranges(cfg: CfgNode, *, num_ranks: int = 1, eval_only: bool = False) -> None:
    """Raise ValueError, with key, value and valid range, for the first value out of range.

    Args:
        cfg: merged from all sources.
        num_ranks: of the run.
        eval_only: without training, for which the keys of ``SOLVER`` are not used.
    """
    values = {
        key: value
        for key, value in flatten(cfg).items()
        if not (eval_only and key.startswith("SOLVER."))
    }
    for key, value in values.items():
        for single in _singles(value):
            problem = _problem(key, single)
            if problem:
                raise ValueError(f"{key} {value!r} {problem}")
    for fits, words, keys in _RANGES:
        for key in keys:
            # Some keys are of one version of Detectron2 only, or may be None.
            if not all(fits(v) for v in _singles(values.get(key)) if isinstance(v, (int, float))):
                raise ValueError(f"{key} {values[key]} must be {words}")
    if cfg.SEED > _SEEDS - num_ranks:
        raise ValueError(f"SEED {cfg.SEED} must be {_SEEDS - num_ranks} at most")
    if not cfg.OUTPUT_DIR:
        raise ValueError("OUTPUT_DIR is empty: set it to a folder")
    check_choice("WANDB.MODE", cfg.WANDB.MODE, ("", "online", "offline", "disabled"))
    if not eval_only:
        _check_solver(cfg)


def _check_solver(cfg: CfgNode) -> None:
    steps = list(cfg.SOLVER.STEPS)
    if steps != sorted(set(steps)):
        raise ValueError(f"SOLVER.STEPS {tuple(steps)} must be in ascending order")
    size, ranks = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if ranks and size % ranks:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {size} is not a multiple of SOLVER.REFERENCE_WORLD_SIZE {ranks}"
        )


def _problem(key: str, value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "" if value > 0 and key in _MAY_BE_INFINITE else "is not finite"
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return "does not fit into 64 bits"
    if isinstance(value, str):
        # Such strings cannot be part of a file name.
        if "\0" in value:
            return "contains a NUL character"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "contains half a character (a lone surrogate)"
    return ""


def flatten(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Values of a config by full key."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            values.update(flatten(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


def _singles(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from _singles(entry)
    else:
        yield value


def check_choice(key: str, value: object, choices: Collection[str]) -> None:
    """Raise ValueError if the value of a key is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{key} {value!r} must be one of {', '.join(map(repr, choices))}")
