"""What prototypes are made from, whatever the order, the ranks and the modes of modules."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.data import transforms as T  # noqa: N812
from detectron2.structures import Boxes, Instances
from tiny_training_set import HEIGHT, OBJECTS, WIDTH, register_set

from kd_search.data.io.image import ImageError, read_image
from kd_search.data.sampling.unreadable import TooManySkippedImagesError
from kd_search.data.training_records import training_records
from kd_search.distillation.methods.global_knowledge.candidates import annotated_boxes
from kd_search.distillation.methods.global_knowledge.features import HalfRows
from kd_search.distillation.methods.global_knowledge.generation import PrototypeGeneration
from kd_search.distillation.methods.global_knowledge.match import pool_regions
from kd_search.engine import PersonSearchTrainer
from kd_search.losses import density_filter, select_prototypes
from kd_search.outputs import Part
from tests.distillation.methods.global_knowledge.prototype_setting import (
    CLUSTERS,
    KEY,
    bits,
    generate,
    register,
    same,
    setting,
    setting_cfg,
    write_settings,
)
from tests.engine.toy import start_script


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_settings(tmp_path_factory.mktemp("prototypes"))


# ------------------------------------------------------------------------------------ what is made


def features_by_hand(model, record, boxes, bank):
    """Per level features of boxes of an image that is read and resized here."""
    image = read_image(record["file_name"], "BGR")
    resized = T.ResizeShortestEdge([80, 80], 160).get_transform(image)
    x = torch.as_tensor(resized.apply_image(image).transpose(2, 0, 1).copy())
    boxes = torch.as_tensor(resized.apply_box(boxes.numpy()), dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        maps = model.forward_teacher([{"image": x}], frozenset({Part.FEATURES})).features
        maps = [maps[name] for name in bank.names]
        index = torch.zeros(len(boxes), dtype=torch.int64)
        return pool_regions(maps, bank.strides, boxes, index, bank.samples)


@pytest.mark.parametrize("kind", ["rcnn", "retinanet"])
def test_prototypes_are_the_picks_of_the_pure_functions_on_the_same_features(folders, kind):
    cfg, distiller = setting(folders, kind)
    bank = generate(cfg, distiller)
    # Training leaves out the picture without boxes: positions are those in what remains.
    records = training_records(cfg)
    rows = [
        (position, torch.tensor([entry["bbox"]]).double(), entry["category_id"])
        for position, record in enumerate(records)
        for entry in record["annotations"]
        if entry["category_id"] != 2  # a small one
    ]
    for level in range(bank.num_levels):
        for name in range(4):
            own = [(position, box) for position, box, c in rows if c == name]
            if not own:
                assert not bank.filled[level, name].any()
                continue
            student, teacher = (
                torch.cat([features_by_hand(m, records[p], b, bank)[level] for p, b in own])
                for m in (distiller.student, distiller.teacher.model)
            )
            teacher = HalfRows.pack(teacher).unpack()
            dense = density_filter(student, teacher, percentile=20.0)
            chosen = select_prototypes(student, teacher, dense, num_prototypes=2).indices
            count = len(chosen)
            assert count and bank.filled[level, name].tolist() == [i < count for i in range(2)]
            assert bank.images[level, name, :count].tolist() == [own[i][0] for i in chosen]
            boxes = torch.cat([own[i][1] for i in chosen])
            assert torch.equal(bank.boxes[level, name, :count], boxes.float())
            ours, theirs, groups = bank.prototypes(level)
            torch.testing.assert_close(ours[groups == name], student[chosen])
            torch.testing.assert_close(theirs[groups == name], teacher[chosen])
    assert bank.filled[:, 0].all() and not bank.filled[:, 2:].any()


def test_student_features_are_computed_in_every_generation_and_the_teachers_once(folders):
    cfg, distiller = setting(folders, "rcnn")
    generation = PrototypeGeneration(cfg, distiller, 3)
    calls = {"student": 0, "teacher": 0}

    def counted(model, side):
        forward = model.forward_teacher

        def count(*args):
            calls[side] += 1
            return forward(*args)

        model.forward_teacher = count

    counted(distiller.student, "student")
    counted(distiller.teacher.model, "teacher")
    first = generation.pick()
    assert calls == {"student": 5, "teacher": 5}
    again = generation.pick()
    assert calls == {"student": 10, "teacher": 5}
    for one, other in zip(first, again):
        assert all(torch.equal(x, y) for x, y in zip(one[2:], other[2:]))
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in distiller.student.backbone.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    changed = generation.pick()
    assert calls == {"student": 15, "teacher": 5}
    common = [(x, y) for x, y in zip(first, changed) if torch.equal(x.boxes, y.boxes) and len(x[2])]
    assert common and all(torch.equal(x.teacher, y.teacher) for x, y in common)
    assert all(not torch.equal(x.student, y.student) for x, y in common)


def test_modes_weights_and_statistics_are_left_as_they_were(folders):
    cfg, distiller = setting(folders, "rcnn")
    distiller.train()
    distiller.student.backbone.bottom_up.stem.eval()
    modes = [module.training for module in distiller.modules()]
    before = {name: value.clone() for name, value in distiller.student.state_dict().items()}
    PrototypeGeneration(cfg, distiller, 3).pick()
    assert [module.training for module in distiller.modules()] == modes
    assert not any(module.training for module in distiller.teacher.model.modules())
    same(before, distiller.student.state_dict())
    assert distiller.companions["PrototypeBank"].is_empty


def test_workers_have_no_part_in_prototypes(folders):
    prototypes = [
        bits(generate(*setting(folders, "people", "DATALOADER.NUM_WORKERS", number)))
        for number in (0, 2)
    ]
    same(*prototypes)
    assert prototypes[0]["filled"].any()


def test_only_so_many_images_of_a_class_are_looked_at(folders):
    cfg, distiller = setting(folders, "rcnn", KEY + "IMAGES_PER_CLASS", 1)
    bank = generate(cfg, distiller)
    for name in (0, 1):
        assert len(bank.images[:, name][bank.filled[:, name]].unique()) == 1
    # Class 1 is in the last picture alone, which lends no box of class 0 unless chosen for it.
    assert bank.images[0, 1, 0] == 4


def test_classes_without_prototypes_are_named_once(folders, caplog):
    caplog.set_level("INFO", "kd_search")
    cfg, distiller = setting(folders, "rcnn")
    generation = PrototypeGeneration(cfg, distiller, 3)
    generation.pick()
    generation.pick()
    message = "2 classes have no prototype, their regions have weight 1: 2, 3"
    assert caplog.text.count(message) == 1 and caplog.text.count("from 5 images") == 2


def test_a_set_without_a_usable_box_has_no_prototypes(folders, caplog):
    bank = generate(*setting(folders, "rcnn", KEY + "MIN_SIZE", 500.0))
    assert bank.is_empty and "4 classes have no prototype" in caplog.text


# ----------------------------------------------------------------------------------- kinds of data


def test_people_are_one_class_or_clusters_of_those_that_look_alike(folders):
    cfg, distiller = setting(folders, "people")
    bank = generate(cfg, distiller)
    assert bank.num_groups == 1 and bank.filled.all()
    cfg, distiller = setting(folders, "people", *CLUSTERS)
    bank = generate(cfg, distiller)
    groups = bank.identity_groups
    # Five of six rows of the table are people of this set.
    assert groups[5:].tolist() == [-1] and set(groups[:5].tolist()) == {0, 1}
    people = [
        (position, box, entry["person_id"])
        for position, record in enumerate(training_records(cfg))
        for entry, box in zip(record["annotations"], annotated_boxes(record).boxes.tolist())
    ]
    for level in range(bank.num_levels):
        for group in range(2):
            for slot in bank.filled[level, group].nonzero().flatten():
                position = int(bank.images[level, group, slot])
                box = bank.boxes[level, group, slot].tolist()
                (person,) = [p for q, b, p in people if q == position and b == box]
                assert person >= 0 and groups[person] == group
    # Made once: another student and another seed leave them alone.
    before = groups.clone()
    PrototypeGeneration(cfg, distiller, 77).pick()
    assert torch.equal(bank.identity_groups, before)


def test_fewer_identities_than_clusters(folders):
    cfg, distiller = setting(folders, "people", *CLUSTERS[:3], 9)
    bank = generate(cfg, distiller)
    assert bank.identity_groups.tolist() == [0, 1, 2, 3, 4, -1]
    assert bank.filled.any(dim=2).any(dim=0).tolist() == [True] * 5 + [False] * 4


def test_sets_are_joined_and_images_counted_over_all(folders):
    register(folders / "rcnn", "rcnn")
    register_set(
        "prototypes_second", folders / "rcnn", [[(3, (5, 5, 60, 60))], [(0, (0, 0, 9, 9))]]
    )
    names = ("prototypes_rcnn", "prototypes_second")
    cfg, distiller = setting(folders, "rcnn", "DATASETS.TRAIN", names)
    generation = PrototypeGeneration(cfg, distiller, 3)
    # Picture 2 has no box, and training leaves it out.
    assert generation.num_images == len(OBJECTS) - 1 + 2
    bank = generate(cfg, distiller)
    assert bank.images[0, 3, 0] == len(OBJECTS) - 1
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert generate(cfg, distiller).images[0, 3, 0] == len(OBJECTS)


def test_data_that_has_no_boxes_is_refused_in_one_line(folders):
    cfg, distiller = setting(folders, "rcnn", "DATASETS.TRAIN", ())
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        PrototypeGeneration(cfg, distiller, 3)


# ------------------------------------------------------------------------------- unreadable images


def test_an_unreadable_image_stops_or_is_left_out_as_in_training(folders, caplog):
    cfg, distiller = setting(folders, "rcnn", folder="truncated")
    with pytest.raises(ImageError, match="5.png"):
        generate(cfg, distiller)
    assert distiller.companions["PrototypeBank"].is_empty and distiller.student.training
    cfg.INPUT.ON_IMAGE_ERROR, cfg.INPUT.MAX_SKIPPED_FRACTION = "skip", 0.5
    bank = generate(cfg, distiller)
    assert not bank.filled[:, 1].any() and bank.filled[:, 0].all()
    assert "Skipped unreadable image" in caplog.text
    cfg.INPUT.MAX_SKIPPED_FRACTION = 0.01
    with pytest.raises(TooManySkippedImagesError):
        generate(cfg, distiller)


# --------------------------------------------------------------------------------- confident boxes


def test_confident_boxes_of_the_teacher_are_mapped_to_the_students_classes(folders, monkeypatch):
    cfg, distiller = setting(folders, "rcnn", KEY + "MIN_SCORE", 0.8)
    found = Instances((HEIGHT, WIDTH))
    # Class 1 of the student in picture 5, where it is not annotated; one below the score; one of
    # class 3, for which no picture was chosen.
    found.pred_boxes = Boxes(torch.tensor([[2.0, 2, 60, 40], [60, 2, 120, 40], [2, 2, 60, 40]]))
    found.scores = torch.tensor([0.9, 0.7, 0.95])
    found.pred_classes = torch.tensor([2, 2, 0])
    calls = []

    def detect(batch):
        calls.append(batch[0]["image"].shape)
        return [{"instances": copy.deepcopy(found)}]

    teacher = distiller.teacher
    monkeypatch.setattr(teacher.model, "forward", detect)
    groups = [[3], [2], [1], [0]]
    teacher.aligner.classes = type(teacher.aligner.classes)(
        [(theirs, ours) for ours, (theirs,) in enumerate(groups)], 4, 4
    )
    off = generate(cfg, distiller)
    assert not calls and off.filled[0, 1].sum() == 2
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.CONFIDENT_BOXES = True
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PERCENTILE = 0.0
    generation = PrototypeGeneration(cfg, distiller, 3)
    picked = generation.pick()
    assert calls == [(3, 80, 107)] * 5
    generation.pick()
    assert len(calls) == 5
    candidates = generation._features.visit(generation._loader)
    last = candidates.images == 4
    assert candidates.found.classes[last].tolist() == [1, 0, 1, 1]
    assert candidates.found.boxes[last][-1].tolist() == [2, 2, 60, 40]
    assert candidates.found.numbers[last].tolist() == [0, 1, 2, 4]
    # In the pictures that were chosen for class 0 alone it counts for nothing.
    assert not (candidates.found.classes[~last] == 1).any()
    assert {p.group for p in picked if len(p.images)} == {0, 1}


def test_a_real_teacher_detects_on_the_original_picture(folders):
    options = (KEY + "CONFIDENT_BOXES", True, KEY + "MIN_SCORE", 0.0, KEY + "MIN_SIZE", 1.0)
    cfg, distiller = setting(folders, "retinanet", *options)
    distiller.teacher.model.test_score_thresh = 0.0
    generation = PrototypeGeneration(cfg, distiller, 3)
    found = generation._features.visit(generation._loader).found
    plain = PrototypeGeneration(*setting(folders, "retinanet", *options[:1], False), 3)
    annotated = plain._features.visit(plain._loader).found
    assert len(found.boxes) > len(annotated.boxes)
    assert (found.boxes[:, 2] > WIDTH * 0.9).any() and (found.boxes <= WIDTH).all()
    # Identities are known of annotated people alone: the teacher detects nothing.
    cfg, distiller = setting(folders, "people", *options, *CLUSTERS)
    distiller.teacher.model.inference = None
    generate(cfg, distiller)


# ---------------------------------------------------------------------------------- several ranks


@pytest.fixture(scope="module")
def ranks(folders):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start_script(
        Path(__file__).with_name("prototype_ranks.py"), {}, str(folders), launcher=launcher
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return [torch.load(folders / f"rank{r}.pth", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize(("kind", "overrides"), [("rcnn", ()), ("people", CLUSTERS)])
def test_the_number_of_ranks_has_no_part_in_prototypes(folders, ranks, kind, overrides):
    register(folders / kind, kind)
    cfg = setting_cfg(folders / kind, kind, *overrides)
    torch.manual_seed(0)
    alone = generate(cfg, PersonSearchTrainer.build_model(cfg)).state_dict()
    for result in ranks:
        same(result[kind], alone)
    if kind == "rcnn":
        # Class 1 is in the last picture alone, so on rank 1.
        assert alone["filled"][:, 1].all()


def test_ranks_train_with_the_same_prototypes(ranks):
    same(ranks[0]["trained"], ranks[1]["trained"])
    assert ranks[0]["trained"]["filled"].any()


def test_an_unreadable_image_on_one_rank_stops_all(ranks):
    assert "rank 1 stopped" in ranks[0]["error"] and "5.png" in ranks[0]["error"]
    assert "5.png" in ranks[1]["error"] and "stopped" not in ranks[1]["error"]
