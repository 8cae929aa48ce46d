"""The numbers that experiments report, of all that evaluations return."""

import math
from collections.abc import Mapping

#: Where each number comes from in the results of Detectron2 and kd_search: (task, key). In the
#: order of tables; all in percent.
METRICS = {
    "AP50": ("bbox", "AP50"),
    "AP": ("bbox", "AP"),
    "AP75": ("bbox", "AP75"),
    "mAP": ("person_search", "mAP"),
    "top1": ("person_search", "top1"),
    "det_AP": ("detection", "AP"),
    "det_recall": ("detection", "recall"),
    "reid_mAP": ("reid", "mAP"),
    "reid_top1": ("reid", "top1"),
    **{
        f"{short}_{key}": (f"reid_{short}", key)
        for short in ("i2v", "v2v", "i2i", "v2i")
        for key in ("mAP", "top1")
    },
}


def pick_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The numbers of :data:`METRICS` that an evaluation has.

    COCO's AP of a network that finds nothing at all is not a number; here it is 0. Of several re-ID
    settings each has its own name, and "reid", which repeats the first of them, is left out.
    """
    several = any(task.startswith("reid_") for task in results)
    picked = {}
    for name, (task, key) in METRICS.items():
        if key in results.get(task, {}) and not (several and task == "reid"):
            value = float(results[task][key])
            picked[name] = 0.0 if math.isnan(value) else value
    return picked
