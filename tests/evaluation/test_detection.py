"""Which evaluator a set gets, and that what it says about perfect and poor detections is right."""

import json
import os

import pytest
import torch
from detection_tree import make_tree, register_tiny_objects
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from kd_search.data.detection.kitti import register_kitti
from kd_search.data.generated import register_generated
from kd_search.evaluation.detection import build_detection_evaluator, has_fast_coco_eval
from kd_search.synthetic import PRESETS, generate_dataset


@pytest.fixture
def registry():
    """Names appended to this list are taken out of Detectron2's catalogs after the test."""
    names = []
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


def detections(record, wrong=False):
    """The annotations of an image as detections; ``wrong``: each of another class."""
    kept = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(kept))
    classes = [a["category_id"] for a in kept]
    instances.pred_classes = torch.tensor([(c + 1) % 3 if wrong else c for c in classes])
    return {"instances": instances}


def evaluate(name, output_dir, **options):
    dicts = DatasetCatalog.get(name)
    evaluator = build_detection_evaluator(name, str(output_dir))
    evaluator.reset()
    for record in dicts:
        evaluator.process([record], [detections(record, **options)])
    return evaluator, evaluator.evaluate()["bbox"]


def test_sets_with_coco_json_are_evaluated_with_it(tree, tmp_path):
    _, name = register_tiny_objects(tree, "objects_for_evaluation")
    evaluator, result = evaluate(name, tmp_path)
    assert isinstance(evaluator, COCOEvaluator)
    assert result["AP"] == pytest.approx(100) and result["AP50"] == pytest.approx(100)
    assert not (tmp_path / f"{name}_coco_format.json").exists()
    assert evaluate(name, tmp_path, wrong=True)[1]["AP"] < 20


def test_other_sets_are_converted_anew_each_time(tmp_path, registry):
    root = make_tree(tmp_path) / "kitti"
    registry.append("kitti_for_evaluation")
    register_kitti("kitti_for_evaluation", "train", str(root))
    before = dict(MetadataCatalog.get("kitti_for_evaluation").as_dict())
    _, result = evaluate("kitti_for_evaluation", tmp_path / "a")
    assert result["AP"] == pytest.approx(100)
    written = tmp_path / "a" / "kitti_for_evaluation_coco_format.json"
    content = json.loads(written.read_text())
    assert [c["name"] for c in content["categories"]] == ["Car", "Pedestrian", "Cyclist"]
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    dicts = DatasetCatalog.get("kitti_for_evaluation")
    assert len(crowds) == sum(a["iscrowd"] for d in dicts for a in d["annotations"]) > 0
    # No trace in the catalog, or the next evaluation would look for this folder.
    assert MetadataCatalog.get("kitti_for_evaluation").as_dict() == before
    assert not [n for n in MetadataCatalog.list() if n.endswith("as COCO-JSON")]
    for label in (root / "training" / "label_2").iterdir():
        label.write_text("")
    (root / "training/label_2/000000.txt").write_text("Car 0 0 0 1 1 30 30 1 1 1 1 1 1 1\n")
    evaluate("kitti_for_evaluation", tmp_path / "a")
    assert len(json.loads(written.read_text())["annotations"]) == 1


def test_detections_in_ignored_places_cost_nothing(tmp_path, registry):
    root = make_tree(tmp_path) / "kitti"
    registry.append("ignored")
    register_kitti("ignored", "train", str(root))
    tail = "1 1 1 1 1 1 1\n"
    for label in (root / "training" / "label_2").iterdir():
        label.write_text("")
    label = root / "training/label_2/000000.txt"
    for kind, expected in (("DontCare", 100.0), ("Van", 100.0), ("Truck", 50.0)):
        label.write_text(f"Car 0 0 0 1 1 30 30 {tail}{kind} 0 0 0 50 20 90 70 {tail}")
        record = DatasetCatalog.get("ignored")[0]
        evaluator = build_detection_evaluator("ignored", str(tmp_path / "out"))
        evaluator.reset()
        instances = Instances((record["height"], record["width"]))
        # The one in the place comes first.
        corners = [[52.0, 25.0, 80.0, 60.0], [1.0, 1.0, 30.0, 30.0]]
        instances.pred_boxes = Boxes(torch.tensor(corners))
        instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8]), torch.zeros(2).long()
        evaluator.process([record], [{"instances": instances}])
        assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(expected, abs=0.1), kind


def test_voc_sets_get_vocs_evaluator(tmp_path, registry):
    classes = ("cat", "dog")
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("a\nb\n")
    for name, kind in (("a", "cat"), ("b", "dog")):
        (tmp_path / f"Annotations/{name}.xml").write_text(
            "<annotation><size><width>50</width><height>40</height></size><object>"
            f"<name>{kind}</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>"
            "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>35</ymax></bndbox>"
            "</object></annotation>"
        )
    registry.append("voc_for_evaluation")
    register_pascal_voc("voc_for_evaluation", str(tmp_path), "test", 2007, classes)
    MetadataCatalog.get("voc_for_evaluation").evaluator_type = "pascal_voc"
    evaluator, result = evaluate("voc_for_evaluation", tmp_path / "out")
    assert isinstance(evaluator, PascalVOCDetectionEvaluator)
    assert result["AP50"] == pytest.approx(100)


def test_people_are_found_as_one_class_without_identities(tmp_path):
    generate_dataset(tmp_path / "people", PRESETS["tiny"], seed=1, progress=False)
    register_generated(str(tmp_path / "people"), prefix="people_for_evaluation")
    _, result = evaluate("people_for_evaluation_test", tmp_path / "out")
    assert result["AP"] == pytest.approx(100)
    assert os.path.isfile(tmp_path / "out" / "people_for_evaluation_test_coco_format.json")


def test_a_set_without_class_names_is_refused(registry, tmp_path):
    registry.append("nameless")
    DatasetCatalog.register("nameless", lambda: [])
    with pytest.raises(ValueError, match="'nameless' .*thing_classes"):
        build_detection_evaluator("nameless", str(tmp_path))


def test_the_fast_evaluation_is_used_only_where_it_was_compiled():
    try:
        from detectron2 import _C

        _C.InstanceAnnotation(1, 0.5, 1.0, False, False)
        compiled = True
    except (ImportError, RuntimeError):
        compiled = False
    assert has_fast_coco_eval() == compiled
