"""look.py of projects/GlobalKnowledge on a tiny set: crops and numbers are those of the bank."""

import re

import numpy as np
import pytest
import torch
from agreement import MeasuredScene
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from look_measures import (
    agreement_correlations,
    choose_positions,
    class_names,
    load_distiller,
    measure_images,
    prototype_pictures,
)
from PIL import Image
from tiny import REPO
from tiny_distiller import save_teacher

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.data.detection.objects import OBJECT_CLASSES
from kd_search.data.generated import register_objects
from kd_search.data.training_records import training_records
from kd_search.distillation.methods.global_knowledge import PrototypeBank
from kd_search.distillation.methods.global_knowledge.candidates import annotated_boxes
from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.outputs import ModelOutputs
from kd_search.synthetic import OBJECTS_PRESETS, generate_objects
from tests.projects.project_files import load_script, merged

look = load_script("GlobalKnowledge", "look")

PREFIX = "objects_for_look"
CONFIGS = REPO / "projects" / "GlobalKnowledge" / "configs" / "objects"
STUDENT = str(CONFIGS / "student_r18w25_fpn64_distilled.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(options of a config of tiny networks, folder with a checkpoint that has prototypes)."""
    folder = tmp_path_factory.mktemp("run")
    generate_objects(folder / "data", OBJECTS_PRESETS["tiny"], seed=0, progress=False)
    register_objects(str(folder / "data"), PREFIX)
    teacher = merged(REPO / "projects/DetectorKD/configs/objects/teacher_r18_fpn64.yaml")
    teacher.MODEL.RESNETS.WIDTH_MULTIPLIER = 0.25
    opts = [
        *save_teacher(folder, teacher),
        *("DATASETS.TRAIN", f"('{PREFIX}_train',)", "DATASETS.TEST", f"('{PREFIX}_test',)"),
        # Twice as large as the pictures are.
        *("INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "1000"),
        *("DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS", "3", "OUTPUT_DIR", str(folder)),
    ]
    cfg = build_config(STUDENT, opts)
    model = PersonSearchTrainer.build_model(cfg)
    bank = model.companions["PrototypeBank"]
    fill(bank, training_records(cfg))
    checkpointer = PersonSearchCheckpointer(model, str(folder), save_to_disk=True)
    checkpointer.save("model_final")
    bank.filled.fill_(False)
    checkpointer.save("model_0000001")
    yield opts, folder
    for split in ("train", "test"):
        DatasetCatalog.remove(f"{PREFIX}_{split}")
        MetadataCatalog.remove(f"{PREFIX}_{split}")


def fill(bank, records):
    """For every class its first boxes of the set, with random features."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for position, record in enumerate(records):
        boxes = annotated_boxes(record)
        for box, name in zip(boxes.boxes, boxes.classes.tolist()):
            found.setdefault(name, []).append((position, box))
    for level in range(bank.num_levels):
        for name, boxes in found.items():
            positions, places = zip(*boxes[: bank.per_class])
            count, images = len(positions), torch.tensor(positions)
            # As random networks have them: mostly positive, not of mean 0.
            ours, theirs = (torch.rand(count, 64, generator=generator) for _ in range(2))
            bank.put(level, name, ours, theirs, images, torch.stack(places))


def words(run, *more):
    opts, _ = run
    options, overrides = list(more), opts
    return ["--config-file", STUDENT, *options, *overrides]


def test_page_of_a_checkpoint(run, tmp_path, capsys):
    output = tmp_path / "look.html"
    assert look.main(words(run, "--output", str(output), "--measured", "5", "--images", "2")) == 0
    assert str(output) in capsys.readouterr().out
    html = output.read_text(encoding="utf-8")
    assert "5 of 16 training images were measured" in html
    # A scene of each of the two images; each prototype and box of low agreement, and the scale.
    assert html.count(" with its boxes") == 2
    prototypes = re.findall(r'alt="(\w+) on p\d, prototype \d+"', html)
    known = set(prototypes) & set(OBJECT_CLASSES)
    boxes = html.count('alt="Box of ')
    assert len(known) >= 6 and boxes > 0
    assert html.count("<img ") == len(prototypes) + boxes + 3


def scene(agreement, sizes, visible=None):
    boxes = [[3.0, 4.0, 3.0 + 2 * s, 4.0 + s / 2] for s in sizes]
    return MeasuredScene(
        name="scene",
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        classes=["fish"] * len(sizes),
        levels=["p3"] * len(sizes),
        agreement=np.array(agreement, dtype=np.float32),
        visible=None if visible is None else np.array(visible, dtype=np.float32),
    )


def test_agreement_beside_size_and_visibility_is_a_rank_correlation():
    # Ranks 1 2 4 3 against 1 2 3 4: 1 - 6 * 2 / (4 * 15); and in reverse.
    scenes = [scene([0.1, 0.2], [10, 20], [1.0, 0.9]), scene([0.9, 0.8], [30, 90], [0.1, 0.2])]
    size, visible = agreement_correlations(scenes)
    assert "size of the box, over 4 boxes: 0.80" in size
    assert "visible, over 4 boxes: -1.00" in visible
    scenes.append(scene([], []))
    assert [line[:45] for line in agreement_correlations(scenes)] == [size[:45]]
    assert agreement_correlations([]) == [] == agreement_correlations(scenes[:1])


def test_visibility_is_read_where_the_set_has_it(run, capsys, tmp_path):
    output = tmp_path / "look.html"
    assert look.main(words(run, "--output", str(output), "--measured", "4", "--images", "1")) == 0
    printed = capsys.readouterr().out
    assert "with the size of the box" in printed and "that is visible" in printed
    assert "with the size of the box" in output.read_text(encoding="utf-8")


def test_pictures_of_a_checkpoint(run, tmp_path):
    output = tmp_path / "new" / "look.png"
    assert look.main(words(run, "--output", str(output), "--measured", "2", "--boxes", "4")) == 0
    names = sorted(p.name for p in output.parent.iterdir())
    assert names == ["look_agreement.png", "look_prototypes.png"]
    assert all(Image.open(output.parent / name).size[0] > 100 for name in names)


def test_numbers_are_those_of_the_bank(run):
    opts, folder = run
    cfg = build_config(STUDENT, opts)
    model = load_distiller(cfg, str(folder / "model_final.pth"))
    bank, records = model.companions["PrototypeBank"], training_records(cfg)
    positions = [0, 3, 15]
    names = class_names(cfg, 8)
    assert names == list(OBJECT_CLASSES)
    measured = measure_images(cfg, model, records, positions, names)
    assert list(measured) == positions
    for position, scene in measured.items():
        record = records[position]
        # By hand: the picture twice as large, boxes with it.
        image = np.asarray(
            Image.open(record["file_name"])
            .convert("RGB")
            .resize((2 * record["width"], 2 * record["height"]), Image.BILINEAR)
        )[:, :, ::-1]
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]])
        boxes[:, 2:] += boxes[:, :2]
        classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        instances = Instances(tensor.shape[1:], gt_boxes=Boxes(2 * boxes), gt_classes=classes)
        sides = []
        for network in (model.student, model.teacher.model):
            with torch.no_grad():
                features = network.backbone(network.preprocess_image([{"image": tensor}]).tensor)
            sides.append(ModelOutputs(features=features, annotated=[instances]))
        expected = bank.compare(*sides)
        np.testing.assert_allclose(
            scene.agreement, expected.assigned_weights().numpy(), rtol=1e-5, atol=1e-6
        )
        assert scene.levels == [bank.names[i] for i in expected.levels]
        assert scene.classes == [OBJECT_CLASSES[i] for i in classes]
        # Not those of the network's input.
        np.testing.assert_allclose(scene.boxes, boxes.numpy(), atol=1e-4)
        assert scene.name in record["file_name"] and scene.scene is None
    everything = np.concatenate([s.agreement for s in measured.values()])
    assert everything.min() < 0.999 and everything.max() <= 1


def bank_of(num_classes=2, **changes):
    return PrototypeBank(["p3", "p4"], [8, 16], [2, 2], [2, 2], num_classes=num_classes, **changes)


def put(bank, level, group, images, boxes):
    rows = torch.ones(len(images), 2)
    bank.put(level, group, rows, rows, torch.tensor(images), torch.tensor(boxes))


def test_crops_are_what_lies_in_the_boxes():
    bank = bank_of(per_class=3)
    put(bank, 0, 1, [4, 2], [[0.0, 0, 10, 20], [10.0, 5, 30, 9.5]])
    put(bank, 1, 0, [2], [[1.0, 1, 2, 2]])
    scenes = {i: np.full((40, 50, 3), 10 * i, np.uint8) for i in range(5)}
    scenes[4][:20, :10] = 200
    records = [{"number": i} for i in range(5)]
    found = prototype_pictures(bank, records, ["a", "b"], lambda r: scenes.get(r["number"]))
    assert {name: [len(v) for v in row.values()] for name, row in found.items()} == {
        "a": [0, 1],
        "b": [2, 0],
    }
    first, second = found["b"]["p3"]
    assert first.shape == (20, 10, 3) and (first == 200).all()
    assert second.shape == (5, 20, 3) and (second == 20).all()
    # What cannot be read has a place all the same.
    found = prototype_pictures(bank, records, ["a", "b"], lambda r: None)
    assert found["b"]["p3"] == [None, None]


def test_clusters_have_numbers():
    bank = bank_of(num_classes=1, per_class=2, num_identities=4, clusters=3)
    put(bank, 0, 2, [0], [[0.0, 0, 4, 4]])
    found = prototype_pictures(bank, [{}], ["person"], lambda r: np.zeros((8, 8, 3), np.uint8))
    assert list(found) == ["cluster 1", "cluster 2", "cluster 3"]
    assert len(found["cluster 3"]["p3"]) == 1


def test_prototypes_of_other_data_are_refused():
    bank = bank_of(per_class=1)
    put(bank, 0, 0, [7], [[0.0, 0, 4, 4]])
    with pytest.raises(ValueError, match="image 7.*DATASETS.TRAIN"):
        prototype_pictures(bank, [{}] * 5, ["a", "b"])


def test_images_are_chosen_at_equal_distances():
    assert choose_positions(9, 3) == [0, 4, 8]
    assert choose_positions(3, 10) == [0, 1, 2] and choose_positions(5, 1) == [0]


@pytest.mark.parametrize(
    "options, overrides, message",
    [
        (["--output", "a.txt"], [], "a.txt: the name must end in .html or .png"),
        (["--images", "0"], [], "must be 1 or more"),
        (["--checkpoint", "absent.pth"], [], "absent.pth do not exist"),
        (["--checkpoint", "{run}/model_0000001.pth"], [], "holds no prototypes"),
        ([], ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "name the config of a distilled"),
        ([], ["DISTILLATION.TERMS", "['RegionClassTerm']"], "compare with no prototypes"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, options, overrides, message):
    output = tmp_path / "a.html"
    options = ["--output", str(output), *(option.format(run=run[1]) for option in options)]
    assert look.main([*words(run, *options), *overrides]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not output.exists()
