"""Measures of look.py: prototypes as pictures, agreement of two networks on annotated boxes."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Callable, Optional

import numpy as np
import torch
from agreement import MeasuredScene
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from scipy.stats import spearmanr
from tqdm import tqdm

from kd_search.checkpoint import load_trained
from kd_search.data.io.image import ImageError, read_image
from kd_search.data.training_records import POSITION_KEY, build_record_loader
from kd_search.distillation import Distiller
from kd_search.distillation.methods.global_knowledge.bank import PrototypeBank
from kd_search.distillation.methods.global_knowledge.candidates import annotated_boxes
from kd_search.distillation.methods.global_knowledge.match import PROTOTYPE_BANK
from kd_search.engine import PersonSearchTrainer
from kd_search.outputs import ModelOutputs, Part
from kd_search.visualization.drawing import crop

Read = Callable[[dict[str, Any]], Optional[np.ndarray]]


def load_distiller(cfg, checkpoint: str) -> Distiller:
    """A distilled training with its student, teacher and prototypes, in evaluation mode.

    Args:
        cfg: its config.
        checkpoint: one of its checkpoints.

    Raises:
        FileNotFoundError: no such file, here or of the teacher.
        ValueError: no distilled training, or a checkpoint without prototypes.
    """
    if cfg.MODEL.META_ARCHITECTURE != "Distiller":
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: name the config of a "
            "distilled training"
        )
    model: Any = PersonSearchTrainer.build_model(cfg).eval()
    if PROTOTYPE_BANK not in model.companions:
        raise ValueError(
            f"DISTILLATION.TERMS {list(cfg.DISTILLATION.TERMS)} compare with no prototypes"
        )
    load_trained(model, checkpoint, checkpointables=["prototypes"])
    bank = model.companions[PROTOTYPE_BANK]
    if bank.is_empty:
        raise ValueError(
            f"{checkpoint} holds no prototypes: it is the checkpoint of another training, or of "
            "one whose terms need none"
        )
    # Prototypes allow to compute the weights even where the training does not use them.
    bank.weighted = bank.in_use = True
    return model


def class_names(cfg, number: int) -> list[str]:
    """Names of the classes of ``DATASETS.TRAIN``, or numbers where it names other ones.

    Args:
        cfg: of the training, whose data set has been read.
        number: K of the network.
    """
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    if names is None and number == 1:
        return ["person"]
    return list(names) if names and len(names) == number else [f"class {i}" for i in range(number)]


def read_scene(record: dict[str, Any]) -> Optional[np.ndarray]:
    """(H, W, 3) uint8 RGB image of a dataset dict; ``None`` where it cannot be read."""
    try:
        return read_image(record["file_name"], format="RGB")
    except ImageError:
        return None


def prototype_pictures(
    bank: PrototypeBank,
    records: Sequence[dict[str, Any]],
    names: Sequence[str],
    read: Read = read_scene,
) -> dict[str, dict[str, list[Optional[np.ndarray]]]]:
    """Content of the boxes of the prototypes, by group and level.

    Args:
        bank: with prototypes.
        records: of ``training_records``, of the same data.
        names: of the classes; clusters of people are named "cluster 1" and so on.
        read: dataset dict to image.

    Raises:
        ValueError: an image of the bank is not among the records.
    """
    if int(bank.images.max()) >= len(records):
        raise ValueError(
            f"a prototype comes from training image {int(bank.images.max())}, but DATASETS.TRAIN "
            f"has {len(records)}: it is not the data of this checkpoint"
        )
    if bank.by_identity:
        names = [f"cluster {i + 1}" for i in range(bank.num_groups)]
    rows: dict[str, dict[str, list[Optional[np.ndarray]]]] = {
        name: {level: [] for level in bank.names} for name in names
    }
    # A large set does not fit into memory, and one image has several prototypes.
    scenes: dict[int, Optional[np.ndarray]] = {}
    for level, group, place in bank.filled.nonzero().tolist():
        position = int(bank.images[level, group, place])
        if position not in scenes:
            if len(scenes) >= 64:
                scenes.pop(next(iter(scenes)))
            scenes[position] = read(records[position])
        scene, box = scenes[position], tuple(bank.boxes[level, group, place].tolist())
        picture = None if scene is None else crop(scene, box)
        rows[names[group]][bank.names[level]].append(picture)
    return rows


def choose_positions(total: int, count: int) -> list[int]:
    """Positions of images at equal distances in the list of the training images."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()})


@torch.no_grad()
def measure_images(
    cfg,
    model: Distiller,
    records: Sequence[dict[str, Any]],
    positions: Sequence[int],
    names: Sequence[str],
) -> dict[int, MeasuredScene]:
    """Agreement on the annotated boxes of training images, without their pictures, by position.

    Images are resized as in testing and not augmented, and both networks are in evaluation mode:
    the numbers are close to those of training, not equal.

    Args:
        cfg: of the training.
        model: of :func:`load_distiller`.
        records: of ``training_records``.
        positions: of the images to measure.
        names: of the classes.

    Returns:
        except for those that cannot be read, where ``INPUT.ON_IMAGE_ERROR`` is "skip".
    """
    scenes, bank = {}, model.companions[PROTOTYPE_BANK]
    loader = build_record_loader(cfg, list(records), list(positions))
    for (sample,) in tqdm(loader, desc="agreement", unit="img", disable=None):
        position = sample[POSITION_KEY]
        found = annotated_boxes(records[position])
        match = bank.compare(*_features(model, sample, found))
        visible = [
            a.get("visible") for a in records[position]["annotations"] if not a.get("iscrowd", 0)
        ]
        scenes[position] = MeasuredScene(
            name=os.path.basename(records[position]["file_name"]),
            boxes=found.boxes.numpy(),
            classes=[names[i] for i in found.classes.tolist()],
            levels=[match.names[i] for i in match.levels.tolist()],
            agreement=match.assigned_weights().cpu().numpy(),
            visible=None if None in visible else np.array(visible, dtype=np.float32),
        )
    return scenes


def agreement_correlations(scenes: Sequence[MeasuredScene]) -> list[str]:
    """Sentences with the correlation of r and size or visible share; none for too few boxes.

    Spearman's rank correlation of r with the side of a square as large as the box and, where it is
    annotated, with the share of the thing that is visible.
    """
    agreement = np.concatenate([np.zeros(0), *(s.agreement for s in scenes)])
    extents = [s.boxes[:, 2:] - s.boxes[:, :2] for s in scenes]
    measures = {"the size of the box": [np.sqrt(e.prod(axis=1)) for e in extents]}
    if all(s.visible is not None for s in scenes):
        measures["the share of the thing that is visible"] = [s.visible for s in scenes]
    sentences = []
    for name, parts in measures.items():
        values = np.concatenate([np.zeros(0), *parts])
        # The correlation of fewer than three boxes, or of equal values, is undefined.
        if len(values) < 3 or min(len(np.unique(values)), len(np.unique(agreement))) < 2:
            continue
        correlation = spearmanr(agreement, values).statistic
        sentences.append(
            f"Rank correlation of r with {name}, over {len(values)} boxes: {correlation:.2f}."
        )
    return sentences


def _features(model: Distiller, sample: dict, found) -> tuple[ModelOutputs, ModelOutputs]:
    """Student's and teacher's features of an image with its annotated boxes."""
    inputs = [{key: sample[key] for key in ("image", "height", "width")}]
    height, width = sample["image"].shape[-2:]
    boxes = Boxes(found.boxes.clone())
    boxes.scale(width / sample["width"], height / sample["height"])
    annotated = Instances(
        (height, width),
        gt_boxes=boxes,
        gt_classes=found.classes,
        gt_person_ids=found.person_ids,
    ).to(model.device)
    features = frozenset({Part.FEATURES})
    student = model.student.forward_teacher(inputs, features)
    teacher = model.teacher.model.forward_teacher(model.teacher.inputs(inputs), features)
    return replace(student, annotated=[annotated]), teacher
