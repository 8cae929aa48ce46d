"""Networks with convolutions in 8-bit integers, and their accuracy beside that of the float one."""

import runpy
from unittest import mock

import numpy as np
import onnx
import pytest
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import BoxMode
from PIL import Image
from tiny import REPO
from trained import exported_network, trained_network

from kd_search.cli.export import format_int8
from kd_search.data import PersonSearchDatasetMapper
from kd_search.evaluation import PersonSearchEvaluator
from kd_search.experiments.results_file import read_study
from kd_search.export import ExportParityError, model_file
from kd_search.export.gate import Result
from kd_search.export.gate_pictures import made_scene, write_gate_pictures
from kd_search.export.model_file import export_model
from kd_search.export.quantized import accuracy, agreement
from kd_search.runtime import PersonSearcher
from kd_search.utils.files import write_json

SIZE = (96, 128)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A registered test set: three scenes, each twice with other noise; a query in the first."""
    folder = tmp_path_factory.mktemp("scenes")
    records = []
    for scene in range(3):
        for turn in range(2):
            pixels, boxes = made_scene(np.random.default_rng(scene), SIZE, 2)
            noise = np.random.default_rng(9 + turn).normal(0, 8 * turn, pixels.shape)
            file = folder / f"scene{scene}{turn}.png"
            Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file)
            people = [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
                | {"person_id": 10 * scene + i}
                for i, box in enumerate(boxes)
            ]
            record = {"file_name": str(file), "image_id": file.name, "annotations": people}
            record |= {"height": SIZE[0], "width": SIZE[1]}
            if turn == 0:
                query = {key: people[0][key] for key in ("bbox", "person_id")}
                record["queries"] = [{**query, "query_id": scene}]
            records.append(record)
    DatasetCatalog.register("int8_scenes", lambda: records)
    yield "int8_scenes"
    DatasetCatalog.remove("int8_scenes")


@pytest.fixture(scope="module")
def cfg(scenes):
    cfg = trained_network("fpn")[0].clone()
    cfg.DATASETS.TEST = (scenes,)
    return cfg


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    return [picture.file for picture in write_gate_pictures(folder, 96, seed=8)]


@pytest.fixture(scope="module")
def int8(cfg, calibration, tmp_path_factory):
    """Path and manifest of an int8 file."""
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    graph = onnx.load(exported_network())
    del graph.metadata_props[:]
    with mock.patch.object(model_file, "to_onnx", lambda *_: graph.SerializeToString()):
        return path, export_model(trained_network("fpn")[1], path, cfg=cfg, int8=calibration)


def test_the_accuracy_of_a_file_is_that_of_its_network(cfg, scenes):
    model = trained_network("fpn")[1]
    loader = build_detection_test_loader(
        DatasetCatalog.get(scenes), mapper=PersonSearchDatasetMapper(cfg, is_train=False)
    )
    evaluator = PersonSearchEvaluator(cfg, scenes, None)
    theirs = inference_on_dataset(model, loader, evaluator)["person_search"]
    found = accuracy(exported_network(), cfg, scenes)
    assert found == pytest.approx({key: theirs[key] for key in ("mAP", "top1")})
    assert found["mAP"] > 0


def test_an_int8_file_has_the_accuracy_of_both(int8, cfg, scenes, calibration):
    path, made = int8
    assert made["weights_type"] == "int8" and made["parity"]["people"] >= 20
    assert made["int8"]["float32"] == accuracy(exported_network(), cfg, scenes)
    assert made["int8"]["int8"] == accuracy(path, cfg, scenes)
    assert made["int8"]["dataset"] == scenes
    assert made["int8"]["calibration_pictures"] == len(calibration)
    assert 0.9 < made["int8"]["agreement"]["mean_cosine"] < 1
    assert PersonSearcher.load(path, threads=1).manifest["int8"] == made["int8"]
    text = format_int8(made["int8"])
    assert scenes in text and f"mAP {made['int8']['int8']['mAP']:.2f}" in text


def test_convolutions_alone_are_quantised(int8):
    path, _ = int8
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [entry.domain for entry in model.opset_import] == [""]
    graph = model.graph
    quantised = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions and all(set(node.input[:2]) <= quantised for node in convolutions)
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert products and {types[node.input[1]] for node in products} == {onnx.TensorProto.FLOAT}
    # Weights have a scale by output channel.
    scales = {
        node.output[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"
    }
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert max(len(sizes[scales[node.input[1]]]) for node in convolutions) == 1
    assert path.stat().st_size < exported_network().stat().st_size


def test_the_table_of_several_trainings(
    int8, cfg, calibration, tmp_path, monkeypatch, capsys, request
):
    """tools/measure_int8.py: seeds of one network, here the same one twice."""
    tool = runpy.run_path(str(REPO / "tools" / "measure_int8.py"))
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = ("int8_calibration",)
    records = [{"file_name": name, "image_id": name} for name in calibration]
    DatasetCatalog.register("int8_calibration", lambda: records)
    request.addfinalizer(lambda: DatasetCatalog.remove("int8_calibration"))
    path, made = int8
    used = []

    def export(model, path, *, cfg, int8):
        used.append(int8)
        return made

    network = trained_network("fpn")[1]
    for name, replacement in (
        ("load_trained_run", lambda *_: (network, cfg)),
        ("require_run", mock.Mock()),
        ("export_model", export),
    ):
        monkeypatch.setitem(tool["measure"].__globals__, name, replacement)
    runs = [tmp_path / "a", tmp_path / "b"]
    for seed, run in enumerate(runs, 1):
        run.mkdir()
        facts = {"seed": seed, "params": 5, "iterations": 7, "config_sha256": ""}
        write_json(run / "result.json", facts, sealed=True)
    file = tmp_path / "int8.json"
    options = [*map(str, runs), "--pictures", "2", "--results", str(file)]
    assert tool["main"](options) == 0
    assert used == [[calibration[0], calibration[len(calibration) // 2]]] * 2
    study = read_study(file)
    plain, ours = study.table()
    found = made["int8"]
    assert plain["metrics"]["mAP"]["mean"] == pytest.approx(found["float32"]["mAP"])
    assert ours["metrics"]["top1"]["mean"] == pytest.approx(found["int8"]["top1"])
    difference = found["int8"]["mAP"] - found["float32"]["mAP"]
    assert ours["metrics"]["mAP"]["gain"]["mean"] == pytest.approx(difference)
    share = 100 * found["agreement"]["people_of_both"]
    assert ours["metrics"]["found by both"]["mean"] == pytest.approx(share)
    assert ours["metrics"]["mAP"]["n"] == 2 and study.dataset == found["dataset"]
    assert study.note == ""

    def refuse_once(*args, **options):
        monkeypatch.setitem(tool["measure"].__globals__, "export_model", export)
        raise ExportParityError("too few people")

    monkeypatch.setitem(tool["measure"].__globals__, "export_model", refuse_once)
    assert tool["main"](options) == 0
    study = read_study(file)
    assert study.note == "Refused: 1 of 2 (too few people)"
    assert [run.seed for run in study.runs] == [2, 2]
    (runs[1] / "result.json").unlink()
    assert tool["main"](options) == 2
    assert "result.json" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cfg, pictures: pictures.clear(), "no calibration pictures"),
        (lambda cfg, _: setattr(cfg.DATASETS, "TEST", ()), "DATASETS.TEST"),
        (lambda cfg, _: setattr(cfg.DATASETS, "TEST", ("nowhere",)), "nowhere"),
        (
            lambda cfg, pictures: pictures.append(
                DatasetCatalog.get("int8_scenes")[1]["file_name"]
            ),
            "scene01.png is a picture of the test set int8_scenes",
        ),
    ],
    ids=("none", "no set", "unknown set", "of the test set"),
)
def test_what_cannot_be_calibrated_or_evaluated(cfg, calibration, tmp_path, change, words):
    cfg, calibration = cfg.clone(), list(calibration)
    change(cfg, calibration)
    path = tmp_path / "int8.onnx"
    with pytest.raises(ValueError, match=words) as error:
        export_model(trained_network("fpn")[1], path, cfg=cfg, int8=calibration)
    assert "\n" not in str(error.value) and not path.exists()


def result(boxes, embeddings):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Result(boxes, np.ones(len(boxes)), np.ones((len(boxes), 1)), np.array(embeddings))


def test_agreement():
    ours = result([[0, 0, 10, 10], [50, 50, 60, 60]], [[1.0, 0], [0, 1]])
    theirs = result([[51, 50, 61, 60], [0, 0, 9, 10]], [[1.0, 0], [0.02**0.5, 0.98**0.5]])
    found = agreement([ours], [theirs])
    assert (found["people"], found["people_of_both"]) == (2, 1)
    assert found["least_cosine"] == pytest.approx(0.98**0.5)
    assert found["mean_cosine"] == pytest.approx((1 + 0.98**0.5) / 2)


@pytest.mark.parametrize(
    "theirs",
    [
        result([[50, 50, 60, 60]], [[1.0, 0]]),
        result([[0, 0, 10, 10], [50, 50, 60, 60]], [[0.9, 0.19**0.5]]),
        result([[0, 0, 10, 10], [50, 50, 60, 60]], [[np.nan, 0]]),
    ],
    ids=("a person less", "embeddings", "nan"),
)
def test_more_than_rounding_is_refused(theirs):
    ours = result([[0, 0, 10, 10], [50, 50, 60, 60]], [[1.0, 0]])
    with pytest.raises(ExportParityError, match="found by both"):
        agreement([ours], [theirs])
