#!/usr/bin/env python
"""Compare a student with all terms and one without with their teacher, on training images.

    python projects/DetectorKD/fit_check.py --data COCO128 --output output/detector_kd/fit_check

COCO128 holds ``annotations/instances_train2017.json`` and ``train2017/``; --json and --images name
others. A teacher is trained (or loaded, --teacher-weights), then a student without and one with
all terms, from the same initial weights and on the same batches. Training and measurement use the
same images: a check of the mechanism, not a result. Finished trainings are not repeated.

Measured against the teacher, on regions that are the same for all:

- KL(teacher || student) of the class distributions, natural logarithm, mean over regions: of all,
  and of those that overlap an object;
- distance of the box deltas (as weighted by the box transform) of the object's class, mean over
  the regions that overlap an object;
- AP of the student's detections with the teacher's confident ones as ground truth.

The distance of the feature maps is left out: student and teacher have no common feature space, and
only one of the two students has an adapter into the teacher's.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from fit_measures import Objects, ap_against, class_of_regions, delta_distance, kl_divergence
from tqdm import tqdm

from kd_search.checkpoint import load_trained
from kd_search.engine import PersonSearchTrainer
from kd_search.experiments import build_run_config, train_and_evaluate
from kd_search.modeling import as_distillable
from kd_search.utils.files import atomic_write, write_json

REPO = Path(__file__).resolve().parent.parent.parent
CONFIGS = "projects/DetectorKD/configs/coco128"
DATASET = "detector_kd_fit_check"
TITLE = "Mechanism check on training images, not a result"
FILES = {
    "teacher": f"{CONFIGS}/teacher_r18_fpn64.yaml",
    "student": f"{CONFIGS}/student_r18w25_fpn64.yaml",
    "student_distilled": f"{CONFIGS}/student_r18w25_fpn64_distilled.yaml",
}
#: Measure to column of the table.
COLUMNS = {
    "kl": "KL, all regions",
    "kl_objects": "KL, objects",
    "delta_distance": "distance of deltas",
    "AP50": "AP50 against the teacher",
    "AP": "AP against the teacher",
    "labels_AP50": "AP50 against the labels",
}
ROWS = {
    "teacher": "the teacher itself",
    "student": "student alone",
    "student_distilled": "student with all terms",
}


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the images and labels")
    parser.add_argument("--json", default="annotations/instances_train2017.json", help="in --data")
    parser.add_argument("--images", default="train2017", help="in --data")
    parser.add_argument("--output", type=Path, default=Path("output/detector_kd/fit_check"))
    parser.add_argument("--teacher-weights", help="of configs/coco128/teacher_r18_fpn64.yaml")
    parser.add_argument("--iterations", type=int, default=600, help="of each student")
    parser.add_argument("--teacher-iterations", type=int, default=900)
    parser.add_argument("--size", type=int, default=160, help="short side of the images, pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.5, help="of the teacher's detections")
    parser.add_argument("--regions", type=int, default=100, help="the teacher's, per image")
    return parser.parse_args(argv)


def train_networks(args: argparse.Namespace, output: Path) -> dict[str, dict[str, float]]:
    """Train what is not trained yet; returns metrics on the training images by network."""
    metrics = {}
    for name in FILES:
        if name == "teacher" and args.teacher_weights:
            continue
        print(f"{name}: training", flush=True)
        opts = run_opts(args, name, output)
        result = train_and_evaluate(FILES[name], opts, output / name, on_train=False)
        metrics[name] = result["metrics"]
    return metrics


def run_opts(args: argparse.Namespace, name: str, output: Path) -> list[str]:
    """KEY VALUE overrides of one network."""
    iterations = args.teacher_iterations if name == "teacher" else args.iterations
    longest = round(args.size * 5 / 3)
    opts = [
        *("SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", min(50, iterations // 4)),
        *("SOLVER.CHECKPOINT_PERIOD", 100, "SEED", args.seed),
        *("INPUT.MIN_SIZE_TRAIN", (args.size,), "INPUT.MAX_SIZE_TRAIN", longest),
        *("INPUT.MIN_SIZE_TEST", args.size, "INPUT.MAX_SIZE_TEST", longest),
    ]
    if name == "student_distilled":
        opts += ["DISTILLATION.TEACHER.WEIGHTS", weights_of(args, "teacher", output)]
    return list(map(str, opts))


def weights_of(args: argparse.Namespace, name: str, output: Path) -> str:
    if name == "teacher" and args.teacher_weights:
        return args.teacher_weights
    return str(output / name / "model_final.pth")


def load_network(args: argparse.Namespace, name: str, output: Path):
    """The trained network and its config."""
    opts = run_opts(args, name, output)
    cfg = build_run_config(FILES[name], opts, output / name, eval_only=True)
    model = PersonSearchTrainer.build_model(as_distillable(cfg)).eval()
    load_trained(model, weights_of(args, name, output))
    return model, cfg


@torch.no_grad()
def measure(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Measures of every network against the teacher, and the numbers of images and regions."""
    models = {}
    for name in FILES:
        models[name], cfg = load_network(args, name, output)
    teacher = models["teacher"]
    records = {record["image_id"]: record for record in DatasetCatalog.get(DATASET)}
    values: dict[str, dict[str, list[torch.Tensor]]] = {
        name: {"kl": [], "kl_objects": [], "delta_distance": []} for name in models
    }
    found: dict[str, list[Instances]] = {name: [] for name in models}
    for inputs in tqdm(PersonSearchTrainer.build_test_loader(cfg, DATASET), disable=None):
        images = teacher.preprocess_image(inputs)
        proposals, _ = teacher.proposal_generator(images, teacher.backbone(images.tensor), None)
        objects = objects_of(records[inputs[0]["image_id"]], inputs[0]["image"])
        regions = Boxes.cat([objects.boxes, proposals[0].proposal_boxes[: args.regions]])
        classes = class_of_regions(regions, objects)
        predicted = {name: predict(model, inputs, regions) for name, model in models.items()}
        for name, (logits, deltas) in predicted.items():
            kl = kl_divergence(predicted["teacher"][0], logits)
            on = classes >= 0
            distance = delta_distance(predicted["teacher"][1][on], deltas[on], classes[on])
            for key, value in (("kl", kl), ("kl_objects", kl[on]), ("delta_distance", distance)):
                values[name][key].append(value)
            found[name].append(models[name](inputs)[0]["instances"].to("cpu"))
    truth = [x[x.scores > args.threshold] for x in found["teacher"]]
    networks = {}
    for name in models:
        means = {key: float(torch.cat(parts).mean()) for key, parts in values[name].items()}
        rated = truth if name == "teacher" else found[name]
        networks[name] = {**means, **ap_against(truth, rated, cfg.MODEL.ROI_HEADS.NUM_CLASSES)}
    return {
        "networks": networks,
        "images": len(truth),
        "regions": sum(len(x) for x in values["teacher"]["kl"]),
        "object_regions": sum(len(x) for x in values["teacher"]["kl_objects"]),
        "teacher_detections": sum(len(x) for x in truth),
    }


def objects_of(record: dict, image: torch.Tensor) -> Objects:
    """Labelled objects of an image without crowds, in pixels of the network's input."""
    kept = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = torch.tensor([a["bbox"] for a in kept]).reshape(-1, 4)
    # COCO's boxes are XYWH.
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    height, width = image.shape[1:]
    boxes = Boxes(boxes)
    boxes.scale(width / record["width"], height / record["height"])
    return Objects(boxes, torch.tensor([a["category_id"] for a in kept], dtype=torch.int64))


def predict(model, inputs: list[dict], regions: Boxes) -> tuple[torch.Tensor, torch.Tensor]:
    """Class logits and box deltas of given regions of one image."""
    features = model.backbone(model.preprocess_image(inputs).tensor)
    return model.roi_heads.predict_boxes(features, [regions])


def markdown(report: dict[str, Any]) -> str:
    """The table, with a note that it is no result."""
    lines = [
        f"**{TITLE}.** {report['images']} images of {report['size']} pixels, "
        f"{report['teacher_iterations']} iterations of the teacher and {report['iterations']} of "
        f"each student, seed {report['seed']}; {report['regions']} regions, "
        f"{report['object_regions']} of them on objects; {report['teacher_detections']} detections "
        f"of the teacher above {report['threshold']}.",
        "",
        "| | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, title in ROWS.items():
        numbers = report["networks"][name]
        cells = ["-" if numbers.get(k) is None else _format(k, numbers[k]) for k in COLUMNS]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _format(key: str, value: float) -> str:
    return f"{value:.1f}" if "AP" in key else f"{value:.3f}"


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    output = args.output.absolute()
    data = args.data.absolute()
    if args.teacher_weights:
        args.teacher_weights = str(Path(args.teacher_weights).absolute())
    for path in (data / args.json, data / args.images):
        if not path.exists():
            print(f"error: {path} is missing: name the folder with --data", file=sys.stderr)
            return 2
    os.chdir(REPO)
    register_coco_instances(DATASET, {}, str(data / args.json), str(data / args.images))
    try:
        labels = train_networks(args, output)
        report = measure(args, output)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command to go on", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, metrics in labels.items():
        report["networks"][name]["labels_AP50"] = metrics["AP50"]
    for key in ("size", "iterations", "teacher_iterations", "seed", "threshold"):
        report[key] = getattr(args, key)
    write_json(output / "fit_check.json", {"title": TITLE, **report})
    with atomic_write(output / "fit_check.md") as file:
        file.write(markdown(report).encode())
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
