"""Which boxes of a training set may become prototypes."""

import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from tiny_training_set import HEIGHT, WIDTH, object_records
from torch import nn

from kd_search.distillation import FrozenTeacher, TeacherOutputAligner
from kd_search.distillation.methods.global_knowledge.candidates import (
    CandidateBoxes,
    CandidateImage,
    annotated_boxes,
    candidates_of,
    choose_images,
    confident_boxes,
)
from kd_search.outputs import ModelSpec


def entry(name, box, mode=BoxMode.XYXY_ABS, **more):
    return {"bbox": box, "bbox_mode": mode, "category_id": name, **more}


def test_boxes_of_a_record_are_corners_inside_of_the_image_without_crowds():
    record = {
        "width": 100,
        "height": 80,
        "annotations": [
            entry(2, [10, 20, 30, 40], BoxMode.XYWH_ABS),
            entry(0, [5, 5, 60, 70], iscrowd=1),
            entry(1, [-8.0, 4.5, 120, 60], person_id=7, iscrowd=0),
        ],
    }
    found = annotated_boxes(record)
    assert found.boxes.tolist() == [[10, 20, 40, 60], [0, 4.5, 100, 60]]
    assert found.classes.tolist() == [2, 1] and found.person_ids.tolist() == [-1, 7]
    assert found.numbers.tolist() == [0, 1]
    del record["width"]
    assert annotated_boxes(record).boxes[1].tolist() == [-8, 4.5, 120, 60]
    assert len(annotated_boxes({"annotations": []}).boxes) == 0


def many_records():
    """Thirty images with class 0, every third one with class 1 too, one of them with class 2."""
    records = []
    for i in range(30):
        boxes = [entry(0, [0, 0, 50, 50])]
        boxes += [entry(1, [0, 0, 40, 40])] if i % 3 == 0 else []
        boxes += [entry(2, [5, 5, 60, 60])] if i == 9 else []
        records.append({"width": 64, "height": 64, "annotations": boxes})
    return records


def choose(records=None, images_per_class=4, min_size=30.0, seed=1):
    records = many_records() if records is None else records
    return choose_images(records, images_per_class=images_per_class, min_size=min_size, seed=seed)


def test_so_many_images_are_chosen_for_every_class_and_lend_boxes_of_that_class_alone():
    images = choose()
    assert list(images) == sorted(images)
    chosen = {
        name: [p for p, image in images.items() if name in image.classes.tolist()]
        for name in range(3)
    }
    assert len(chosen[0]) == len(chosen[1]) == 4 and chosen[2] == [9]
    assert all(position % 3 == 0 for position in chosen[1])
    alone = next(p for p in chosen[1] if p not in chosen[0] + chosen[2])
    found = candidates_of(images[alone], 64, 64, min_size=30)
    assert found.classes.tolist() == [1] and found.numbers.tolist() == [1]


def test_the_choice_comes_from_the_seed_alone():
    assert list(choose()) == list(choose())
    assert list(choose(seed=2)) != list(choose())
    assert list(choose(images_per_class=100)) == list(range(30))
    # Another class leaves those of the first alone.
    fewer = [{**r, "annotations": r["annotations"][:1]} for r in many_records()]
    of_first = [p for p, image in choose().items() if 0 in image.classes.tolist()]
    assert list(choose(fewer)) == of_first


def test_small_boxes_count_neither_for_the_choice_nor_as_candidates(tmp_path):
    images = choose(object_records(tmp_path), images_per_class=10)
    # The box of class 2 is 25 pixels wide; picture 2 has none.
    assert list(images) == [0, 1, 3, 4, 5]
    assert images[1].classes.tolist() == [0] and images[5].classes.tolist() == [0, 1]
    assert len(images[1].annotated.boxes) == 2
    assert candidates_of(images[1], WIDTH, HEIGHT, min_size=30).numbers.tolist() == [0]
    # Exactly as large as the limit is not larger.
    edge = [{"width": 99, "height": 99, "annotations": [entry(0, [0, 0, 30, 31])]}]
    assert not choose(edge) and list(choose(edge, min_size=29)) == [0]
    # What is left of a box inside of the image counts.
    outside = [{"width": 99, "height": 99, "annotations": [entry(0, [80, 0, 140, 60])]}]
    assert not choose(outside)


def test_a_set_without_a_usable_box_is_no_error():
    assert choose([{"annotations": []}]) == {} and choose([]) == {}


def boxes_of(*rows):
    """(class, XYXY) rows."""
    return CandidateBoxes(
        torch.arange(len(rows)),
        torch.tensor([row[1] for row in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([row[0] for row in rows], dtype=torch.int64),
        torch.full((len(rows),), -1),
    )


def test_confident_boxes_are_added_where_their_class_is_not_annotated():
    annotated = boxes_of((0, (0, 0, 40, 40)), (1, (50, 0, 70, 20)))
    confident = boxes_of(
        (0, (0, 0, 40, 36)),  # IoU 0.9 with the first
        (1, (0, 0, 40, 40)),  # the same place, another class
        (1, (50, 0, 70, 21)),  # known, although too small itself
        (0, (0, 0, 40, 80)),  # IoU 0.5, which is not more
        (2, (10, 10, 60, 60)),  # a class that the image was not chosen for
        (0, (60, 60, 120, 130)),  # reaches over the border
    )
    image = CandidateImage(annotated, torch.tensor([0, 1]))
    found = candidates_of(image, 100, 100, min_size=30, confident=confident)
    # Numbers of the teacher's boxes go on behind the annotated ones.
    assert found.numbers.tolist() == [0, 3, 5, 7]
    assert found.classes.tolist() == [0, 1, 0, 0]
    assert found.boxes[-1].tolist() == [60, 60, 100, 100]
    assert found.person_ids.tolist() == [-1] * 4
    nothing = candidates_of(image, 100, 100, min_size=30, confident=boxes_of())
    assert nothing.numbers.tolist() == [0]


class Detector(nn.Module):
    """Finds what it is told to, and remembers what it saw."""

    def __init__(self, *rows):
        super().__init__()
        self.rows = rows

    def spec(self):
        return ModelSpec({}, num_classes=4)

    def forward_teacher(self, batched_inputs, parts):
        raise NotImplementedError

    def forward(self, batch):
        assert not self.training
        self.seen = batch
        found = Instances((10, 10))
        found.pred_boxes = Boxes(torch.tensor([box for _, _, box in self.rows]).reshape(-1, 4))
        found.pred_classes = torch.tensor([name for name, _, _ in self.rows], dtype=torch.int64)
        found.scores = torch.tensor([score for _, score, _ in self.rows])
        return [{"instances": found}]


BOX, NEAR, FAR = (0.0, 0.0, 40.0, 40.0), (0.0, 0.0, 40.0, 38.0), (50.0, 50.0, 90.0, 90.0)


def inputs():
    image = torch.arange(3, dtype=torch.uint8)[:, None, None].expand(3, 10, 10)
    return [{"image": image, "width": 10, "height": 10}]


def test_boxes_of_a_teacher_have_the_classes_of_the_student():
    detector = Detector(
        *((0, 0.95, BOX), (1, 0.99, NEAR), (2, 0.99, FAR), (0, 0.9, FAR), (3, 0.91, BOX))
    )
    specs = (
        ModelSpec({}, num_classes=2, image_format="BGR"),
        ModelSpec({}, num_classes=4, image_format="RGB"),
    )
    # Classes 0 and 1 map to 1; class 2 has no counterpart.
    teacher = FrozenTeacher(
        detector, frozenset(), TeacherOutputAligner(*specs, [[0, 1], [1, 1], [3, 0]])
    )
    found = confident_boxes(teacher, inputs(), 0.9)
    assert found.classes.tolist() == [1, 0]
    assert found.boxes.tolist() == [list(NEAR), list(BOX)]
    assert torch.equal(detector.seen[0]["image"], inputs()[0]["image"].flip(0))


def test_boxes_of_a_teacher_without_an_aligner_keep_their_classes():
    teacher = FrozenTeacher(Detector((0, 0.95, BOX), (1, 0.2, FAR), (1, 0.97, BOX)))
    found = confident_boxes(teacher, inputs(), 0.9)
    assert found.classes.tolist() == [1, 0]
    assert len(confident_boxes(FrozenTeacher(Detector()), inputs(), 0.9).boxes) == 0


@pytest.mark.parametrize("num_classes", [1, 3])
def test_classes_are_their_own_without_a_map(num_classes):
    spec = ModelSpec({}, num_classes=num_classes)
    classes = torch.arange(num_classes)
    assert torch.equal(TeacherOutputAligner(spec, spec).classes.student_classes(classes), classes)
