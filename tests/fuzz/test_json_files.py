"""Damaged and hostile JSON files: one line that names the file, or a right result."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import strategies as st
from PIL import Image

from kd_search.cli import show
from kd_search.data.detection.register import load_detection_set
from kd_search.data.generated import register_objects
from kd_search.data.person_search.coco_json import load_coco_json
from kd_search.evaluation import Protocol
from kd_search.evaluation.search.compare_runs import compare_runs, load_results
from kd_search.evaluation.search.plot_data import cmc_curve
from kd_search.evaluation.search.protocol_table import read_table_rows
from kd_search.synthetic.objects_layouts import write_ilsvrc_layout, write_kitti_layout
from kd_search.utils.files import write_json
from kd_search.visualization import choose_queries, draw_search_results
from kd_search.visualization.search_plots import draw_gallery_sizes
from tests.evaluation.search import fake_model
from tests.hostile import changes, harms, lengths, refused, to_json, try_examples

OLD = Path(__file__).resolve().parents[1] / "old_files"
RESULTS, TABLE = "person_search_results.json", "person_search_table.json"
NAME = "kd_search_old_files"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """The set that the old results are of, with pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    records = fake_model.make_dataset(num_images=6, num_persons=3)
    for index, record in enumerate(records):
        record["file_name"] = str(folder / f"{index}.png")
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).resize((400, 300)).save(record["file_name"])
    fake_model.register(NAME, records)
    MetadataCatalog.get(NAME).set(evaluator_type="person_search", person_ids=(0, 1, 2))
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def use(document, whole, records) -> None:
    """What the tools do with results."""
    cmc_curve(document["queries"])
    Protocol(**(document.get("protocol") or {}))
    found = compare_runs(whole, document, resamples=5)
    assert np.isfinite([found.mean_a, found.mean_b, found.p_value]).all()
    chosen = choose_queries(document["queries"], 2)
    draw_search_results(document["queries"], records, chosen, 3, tile_width=40)


@lengths(200, 2000)
def test_results_with_a_wrong_field_are_refused_or_can_be_used(tmp_path, records, examples):
    path, whole = tmp_path / RESULTS, load_results(OLD)
    outcomes = set()

    def check(document):
        path.write_text(to_json(document))
        if refused(lambda: load_results(path), path):
            outcomes.add("refused")
            return
        # It is well-formed: of other queries, say, which the tools refuse in a line of their own.
        outcomes.add("used" if not refused_or_done(load_results(path), whole, records) else "line")

    try_examples(examples, check, changes(whole))
    assert outcomes >= {"refused", "used"}


def refused_or_done(document, whole, records) -> bool:
    # These lines name queries and images: the file was in order.
    return refused(lambda: use(document, whole, records), "")


@lengths(15, 200)
def test_the_tool_ends_in_a_picture_or_in_one_line(tmp_path, records, capsys, examples):
    path = tmp_path / RESULTS

    def check(document):
        path.write_text(to_json(document))
        (tmp_path / "a.png").unlink(missing_ok=True)
        argv = [str(path), "--output", str(tmp_path / "a.png"), "--queries", "1", "--top-k", "1"]
        status, printed = show.main(argv), capsys.readouterr()
        assert (status == 0) == (tmp_path / "a.png").exists()
        assert len(printed.err.splitlines()) == (0 if status == 0 else 1)
        assert status in (0, 2)

    try_examples(examples, check, changes(load_results(OLD)))


@pytest.mark.parametrize("name, read", [(RESULTS, load_results), (TABLE, None)])
@lengths(150, 2000)
def test_no_change_of_a_sealed_file_is_silent(tmp_path, name, read, examples):
    path, whole = tmp_path / name, json.loads((OLD / name).read_text())
    write_json(path, whole, sealed=True)
    content = path.read_bytes()
    read = read or (lambda file: read_table_rows(file.parent))
    expected = read(path)

    def check(changed):
        path.write_bytes(changed if isinstance(changed, bytes) else to_json(changed).encode())
        if not refused(lambda: read(path), path):
            found = read(path)
            if isinstance(found, dict):
                found = {key: found.get(key) for key in expected}
            assert found == expected

    try_examples(examples, check, st.one_of(harms(content), changes(json.loads(content))))


@lengths(120, 1500)
def test_tables_with_a_wrong_field_are_refused_or_drawn(tmp_path, examples):
    path, whole = tmp_path / TABLE, json.loads((OLD / TABLE).read_text())

    def check(document):
        path.write_text(to_json(document))
        if not refused(lambda: read_table_rows(tmp_path), path):
            rows = [row for row in read_table_rows(tmp_path) if row["mAP"] is not None]
            assert all(0 <= row["mAP"] <= 100.001 and row["gallery_images"] > 0 for row in rows)
            drawn.append(rows)

    drawn = []
    try_examples(examples, check, changes(whole))
    # Drawing takes longest: only some of the ones that were read.
    for rows in [rows for rows in drawn if rows][:: max(1, len(drawn) // 3)]:
        draw_gallery_sizes({"a": rows}, "x")


@lengths(100, 1500)
def test_generated_things_are_refused_or_lie_in_their_images(tmp_path, examples):
    root = tmp_path / "objects"
    shutil.copytree(OLD / "objects", root)
    path = root / "train.json"
    whole = json.loads(path.read_text())
    register_objects(str(root), prefix="kd_objects_hostile")
    layouts = [(write_kitti_layout, tmp_path / "kitti"), (write_ilsvrc_layout, tmp_path / "ilsvrc")]

    def check(document):
        path.write_text(to_json(document))
        refusal = refused(lambda: load_detection_set("kd_objects_hostile_train"), path)
        for write, folder in layouts:
            shutil.rmtree(folder, ignore_errors=True)
            # An image that is named wrong is missing.
            assert refused_somewhere(lambda w=write, f=folder: w(root, f)) or not refusal
            assert not (refusal and folder.exists())
        if not refusal:
            for record in load_detection_set("kd_objects_hostile_train"):
                for x, y, w, h in (thing["bbox"] for thing in record["annotations"]):
                    assert 0 <= x < x + w <= record["width"]
                    assert 0 <= y < y + h <= record["height"]

    try:
        try_examples(examples, check, changes(whole))
    finally:
        for split in ("train", "test"):
            DatasetCatalog.remove(f"kd_objects_hostile_{split}")
            MetadataCatalog.remove(f"kd_objects_hostile_{split}")


def refused_somewhere(write) -> bool:
    try:
        write()
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)
        return True
    return False


@lengths(250, 3000)
def test_annotation_files_are_refused_or_give_whole_records(tmp_path, examples):
    path = tmp_path / "people.json"
    images = [
        {"id": i, "file_name": f"c1s1_{i}.jpg", "width": 60, "height": 40, "camera_id": 1}
        for i in range(2)
    ]
    images[0].update(frame_id=4, in_gallery=True)
    annotations = [
        {"id": i, "image_id": i % 2, "category_id": 1, "bbox": [1, 2.5, 10, 20], "person_id": i}
        for i in range(3)
    ]
    annotations[0].update(iscrowd=0, area=200.0)
    whole = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
    }
    outcomes = set()

    def check(document):
        path.write_text(to_json(document))
        refusal = refused(lambda: load_coco_json(str(path), str(tmp_path)), path)
        outcomes.add(refusal)
        if not refusal:
            for record in load_coco_json(str(path), str(tmp_path)):
                assert type(record["in_gallery"]) is bool and type(record["width"]) is int
                for annotation in record["annotations"]:
                    x0, y0, x1, y1 = annotation["bbox"]
                    assert 0 <= x0 < x1 <= record["width"] and 0 <= y0 < y1 <= record["height"]
                    assert type(annotation["person_id"]) is int

    try_examples(examples, check, changes(whole))
    assert outcomes == {True, False}
