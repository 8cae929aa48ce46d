"""What ``kd-search init`` chooses for a data set, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Any, Optional

from kd_search.pipeline.networks import NETWORKS, Network, find_network
from kd_search.pipeline.own_data import Statistics

#: Images of a batch: what the small shipped configs were trained with, and what a CPU's or a small
#: GPU's memory holds.
BATCH = 4
#: Shorter side of the network's input: 288 as in the shipped configs for a CPU (PRW-c6), 600 as in
#: OIM (CVPR 2017) on a GPU.
_SIDE = {"cpu": 288, "cuda": 600}
#: Larger where people would be less than this height there: half of the 128 pixels of the smallest
#: re-ID crops.
_PERSON = 64
#: But no larger than twice the side for a CPU (four times the work), and 900 on a GPU (SeqNet, AAAI
#: 2021).
_LARGEST = {"cpu": 576, "cuda": 900}
#: Longer side, as a multiple of the shorter one: 1000 / 600 (OIM), or that of the pictures up to
#: 16 : 9, which would be scaled down further.
_LONGER = (1000 / 600, 16 / 9)
#: A network whose layers are all trained sees everybody so often, in at least and at most so
#: many epochs, and in at least so many iterations. The small shipped configs have 36 (PRW-c6) and
#: about 90 (generated), the recipe for CUHK-SYSU has 54; 6 epochs and 450 iterations are the
#: demo's, 20 epochs are those of the recipe.
_SIGHTINGS, _EPOCHS, _ITERATIONS = 60, (6, 20), 450
#: Epochs, rate of a batch of 5 and place of the step of the recipe of SeqNet and its descendants.
_RECIPE_EPOCHS, _RECIPE_RATE, _RECIPE_STEP = 20, 0.003, 0.8
#: Training images from which a GPU gets the networks of the papers by default: PRW has 5,704.
_MANY_IMAGES = 2000
#: Largest queue of unlabelled people: that of CUHK-SYSU (OIM).
_QUEUE = 5000


@dataclass
class Choice:
    """A decision: config keys with their values, and the reason."""

    what: str
    value: str
    why: str
    keys: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.what}: {self.value} ({self.why})"


def choose_networks(
    data: Statistics,
    device: str,
    teacher: Optional[str],
    student: Optional[str],
    weights: Mapping[str, Optional[str]],
) -> tuple[dict[str, str], list[Choice]]:
    """Names of teacher and student.

    Args:
        data: of the training set.
        device: "cpu" or "cuda".
        teacher, student: names that the user gave.
        weights: of "teacher" and "student", files that the user gave.

    Raises:
        ValueError: a name is unknown, or the network needs weights.
    """
    large = device == "cuda" and data.images >= _MANY_IMAGES and all(weights.values())
    defaults = ("r50_fpn", "r18_fpn128") if large else ("r18_fpn", "r18w50_fpn")
    names = {"teacher": teacher or defaults[0], "student": student or defaults[1]}
    choices = []
    for role, given in (("teacher", teacher), ("student", student)):
        network = find_network(names[role], f"--{role}")
        if network.pretrained and not weights[role]:
            raise ValueError(
                f"{names[role]} is trained from ImageNet weights: download them and name the file "
                f"with --{role}-weights, or take one of {', '.join(_from_scratch())}"
            )
        why = "as you said"
        if not given and large:
            why = f"{data.images} training pictures, a GPU and weights to start from"
        elif not given:
            why = "no weights to start from were named; networks of the papers need ImageNet's"
            if all(weights.values()):
                why = f"{data.images} training pictures on {device}: too few for larger ones"
        keys = {"MODEL.WEIGHTS": "", network.weights: weights[role] or ""}
        choices.append(Choice(role, f"{names[role]}, {network.what}", why, keys))
    return names, choices


def choose_common(data: Statistics, device: str) -> list[Choice]:
    """Settings that the networks share: device, input, batch, identities and queue."""
    side, why = _input_side(data, device)
    # A ninth less and more, as PRW-c6: 256, 288, 320.
    train = sorted({8 * round(side * part / 72) for part in (8, 10)} | {side})
    longer = min(max(data.aspect, _LONGER[0]), _LONGER[1])
    choices = [
        Choice(
            "device",
            device,
            "no GPU was found" if device == "cpu" else "a GPU was found",
            # Workers of the loader beside a GPU; on a CPU they would take cores from the training.
            {"MODEL.DEVICE": device, "DATALOADER.NUM_WORKERS": 4 if device == "cuda" else 0},
        ),
        Choice(
            "input",
            f"{side} pixels on the shorter side, at most {round(side * longer)} on the longer",
            why,
            {
                "INPUT.MIN_SIZE_TRAIN": train,
                "INPUT.MAX_SIZE_TRAIN": round(max(train) * longer),
                "INPUT.MIN_SIZE_TEST": side,
                "INPUT.MAX_SIZE_TEST": round(side * longer),
            },
        ),
        Choice(
            "batch",
            f"{BATCH} pictures",
            "as the shipped configs for small sets",
            {"SOLVER.IMS_PER_BATCH": BATCH},
        ),
    ]
    queue = min(_QUEUE, max(100, 100 * ceil(data.identities / 100)))
    choices.append(
        Choice(
            "identities",
            f"{data.identities:,}, and a queue of {queue:,} unlabelled people",
            "counted when training starts; as many places as identities, as PRW's and CUHK-SYSU's",
            {"MODEL.OIM.NUM_IDS": 0, "MODEL.OIM.QUEUE_SIZE": queue},
        )
    )
    if data.crowd > 15:
        found = 2 * data.crowd
        keys = {
            "TEST.DETECTIONS_PER_IMAGE": found,
            "MODEL.RPN.POST_NMS_TOPK_TEST": max(300, 4 * found),
        }
        why = f"up to {data.crowd} people are in a picture"
        choices.append(Choice("detections", f"up to {found} in a picture", why, keys))
    return choices


def choose_training(network: Network, data: Statistics, side: int) -> list[Choice]:
    """Schedule and, but for the published recipe, anchors.

    Args:
        side: shorter side of the input.
    """
    per_epoch = data.images / BATCH
    if network.recipe:
        iterations = max(_ITERATIONS, round(_RECIPE_EPOCHS * per_epoch))
        step, warm_up = int(_RECIPE_STEP * iterations), max(1, round(per_epoch))
        rate = _RECIPE_RATE * BATCH / 5
        keys = {
            "SOLVER.BASE_LR": rate,
            "SOLVER.STEPS": [step],
            "SOLVER.WARMUP_ITERS": warm_up,
            "SOLVER.CHECKPOINT_PERIOD": max(100, round(per_epoch)),
        }
        why = (
            f"20 epochs of {data.images} pictures; rate {rate:g}, a tenth from iteration {step} "
            "on: the recipe of SeqNet for a batch of 4"
        )
        return [_schedule(iterations, why, keys)]
    seen = data.labelled / max(1, data.identities)
    epochs = min(max(_SIGHTINGS / seen, _EPOCHS[0]), _EPOCHS[1])
    iterations = max(_ITERATIONS, 10 * ceil(epochs * per_epoch / 10))
    why = (
        f"{iterations / per_epoch:.1f} epochs of {data.images} pictures: each of the "
        f"{data.identities} people, with {seen:.1f} boxes, is seen "
        f"{iterations / per_epoch * seen:.0f} times"
    )
    # As the shipped configs have them: 24, 48, 96 and 32, 64, 128 for 26 to 80 and 31 to 137.
    scale = min(1.0, side / data.short_side)
    small, large = scale * data.small, scale * data.large
    anchors = [max(16, 4 * round(size / 4)) for size in (small, sqrt(small * large), large)]
    return [
        _schedule(iterations, why, {"SOLVER.CHECKPOINT_PERIOD": max(100, iterations // 20)}),
        Choice(
            "anchors",
            ", ".join(map(str, anchors)),
            f"from the small to the large people of the input, {small:.0f} to {large:.0f} pixels",
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[anchor] for anchor in anchors]},
        ),
    ]


def _schedule(iterations: int, why: str, keys: Mapping[str, Any]) -> Choice:
    return Choice(
        "schedule", f"{iterations:,} iterations", why, {"SOLVER.MAX_ITER": iterations, **keys}
    )


def _input_side(data: Statistics, device: str) -> tuple[int, str]:
    usual, largest = _SIDE[device], _LARGEST[device]
    needed = ceil(_PERSON * data.short_side / data.height)
    side = min(max(usual, needed), largest, data.short_side)
    side = max(32, side - side % 8)
    person = f"people are {data.height * side / data.short_side:.0f} pixels tall then"
    if side >= data.short_side - 7:
        return side, f"that of the pictures; {person}"
    reason = f"{usual} is usual on {'a GPU' if device == 'cuda' else 'a CPU'}"
    if side > usual:
        reason += f", and people need more of pictures of {data.short_side}"
    return side, f"{reason}; {person}"


def _from_scratch() -> Sequence[str]:
    return [name for name, network in NETWORKS.items() if not network.pretrained]
