"""The table of protocols: rows against single evaluations, counts, files, and what is missing."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

from kd_search.evaluation import (
    GalleryProtocol,
    PersonSearchEvaluator,
    Protocol,
    TableOptions,
    evaluate_detection_set,
    evaluate_detections_file,
    load_detections,
)
from kd_search.evaluation.search.galleries import Gallery, galleries_from_metadata
from kd_search.evaluation.search.predictions import collect
from tests.evaluation.search import fake_model
from tests.evaluation.search.test_evaluator import NAME, ground_truth_run

SUBSET = "occlusion"


def make_records(cameras=3, **options):
    records = fake_model.make_dataset(num_images=24, **options)
    for index, record in enumerate(records):
        record["camera_id"] = index % cameras
    return records


def make_lists(records, sizes=(4, 8), seed=0):
    """Protocol lists as a loader puts them into the metadata: oddities included."""
    rng = np.random.default_rng(seed)
    asked = [(q, index) for index, r in enumerate(records) for q in r.get("queries", [])]
    galleries = {}
    for size in sizes:
        offsets, images, boxes = [0], [], []
        for query, own in asked:
            where = {
                index: a["bbox"]
                for index, record in enumerate(records)
                for a in record["annotations"]
                if a["person_id"] == query["person_id"] and index != own
            }
            chosen = list(where)[: size // 2]
            others = [int(i) for i in rng.permutation(len(records)) if i not in where and i != own]
            listed = chosen + chosen[:1] + others
            images += listed[:size]
            boxes += [where.get(index, [np.nan] * 4) for index in listed[:size]]
            offsets.append(len(images))
        galleries[f"G{size}"] = {
            "query_ids": np.array([query["query_id"] for query, _ in asked]),
            "offsets": np.array(offsets),
            "images": np.array(images),
            "boxes": np.array(boxes, dtype=float),
        }
    some, first = galleries["G4"], 2
    stop = some["offsets"][first]
    galleries[SUBSET] = {
        "query_ids": some["query_ids"][:first][::-1],
        "offsets": np.array([0, *(np.diff(some["offsets"])[:first][::-1].cumsum())]),
        "images": np.concatenate(
            [some["images"][some["offsets"][1] : stop], some["images"][: some["offsets"][1]]]
        ),
        "boxes": np.concatenate(
            [some["boxes"][some["offsets"][1] : stop], some["boxes"][: some["offsets"][1]]]
        ),
    }
    return galleries


def detections_of(records, with_gt=False):
    inputs, outputs = fake_model.run_model(records)
    evaluator = PersonSearchEvaluator(dataset_name=NAME, distributed=False)
    if with_gt:
        for output, given in zip(outputs, ground_truth_run(records)[1]):
            output["gt_instances"] = given["instances"]
    evaluator.process(inputs, outputs)
    return collect(evaluator._images)


def evaluate(records, lists=None, with_gt=False, protocol=None, **options):
    return evaluate_detection_set(
        detections_of(records, with_gt),
        records,
        protocol or Protocol(),
        search_galleries=lists,
        table=TableOptions(**{"bootstrap": 20, **options}),
    )


def test_every_combination_is_one_row():
    records = make_records()
    table = evaluate(records, make_lists(records), with_gt=True).table
    # Two lists and the whole pool, each for everybody and for the subset, and the subset's own
    # list; three kinds of cameras, two boxes, two modes, with and without context.
    assert len(table.rows) == (3 * 2 + 1) * 3 * 2 * 2 * 2
    keys = [
        tuple(row[k] for k in ("boxes", "gallery", "cameras", "subset", "rerank", "mode"))
        for row in table.rows
    ]
    assert len(set(keys)) == len(keys)
    assert {row["gallery"] for row in table.rows} == {"G4", "G8", "all", SUBSET}
    assert table.notes == []
    for row in table.rows:
        assert list(row) == [c for c in table.columns if c in row] and set(row) == set(
            table.columns
        )
        assert (row["mAP"] is None) == (row["queries"] == 0)
        assert (row["note"] is None) == (row["queries"] > 0)
        if row["mAP"] is not None:
            assert row["mAP_low"] <= row["mAP"] + 1e-9 and row["mAP"] <= row["mAP_high"] + 1e-9
    assert 5 < table.select(boxes="detected", gallery="all", subset="all")[0]["mAP"] < 95


def test_each_row_is_what_a_single_evaluation_says():
    """Of each list as the headline, the row of the same list has the same numbers."""
    records = make_records()
    lists = make_lists(records)
    table = evaluate(records, lists).table
    for mode in ("corrected", "compat"):
        for gallery in ("G4", "G8", SUBSET):
            single = evaluate(
                records, lists, protocol=Protocol(gallery=gallery, mode=mode), cbgm=False
            )
            subset = SUBSET if gallery == SUBSET else "all"
            (row,) = table.select(
                gallery=gallery, mode=mode, subset=subset, rerank="none", cameras="all"
            )
            numbers = single.results["person_search"]
            assert row["mAP"] == pytest.approx(numbers["mAP"])
            assert row["top1"] == pytest.approx(numbers["top1"])
            assert row["queries"] == numbers["queries"]
            assert single.protocol.gallery == gallery
    differing = [
        a["mAP"] != b["mAP"]
        for a, b in zip(table.select(mode="corrected"), table.select(mode="compat"))
    ]
    assert any(differing)  # a repeated image must cost something in compat mode


def test_rows_of_a_subset_are_the_means_of_its_queries():
    records = make_records()
    lists = make_lists(records)
    evaluation = evaluate(records, lists, protocol=Protocol(gallery="all"))
    chosen = set(lists[SUBSET]["query_ids"].tolist())
    aps = [r["AP"] for r in evaluation.rankings if r["query_id"] in chosen and r["num_gt"]]
    (row,) = evaluation.table.select(
        gallery="all", subset=SUBSET, mode="corrected", rerank="none", cameras="all"
    )
    assert row["mAP"] == pytest.approx(np.mean(aps)) and row["queries"] == len(aps)


def test_the_usual_gallery_is_the_headline_where_the_set_lists_it():
    records = make_records()
    lists = make_lists(records)
    lists["G100"] = lists.pop("G8")
    assert evaluate(records, lists).protocol.gallery == "G100"
    assert evaluate(records).protocol.gallery == "all"
    with pytest.raises(ValueError, match="gallery 'G50' .*all, G4, occlusion"):
        evaluate(records, lists, protocol=Protocol(gallery="G50"))


def test_the_similarity_is_the_protocols_and_in_every_row():
    records = make_records()
    weighted = evaluate(records, protocol=Protocol(similarity="score_weighted"))
    plain = evaluate(records)
    assert {row["similarity"] for row in weighted.table.rows} == {"score_weighted"}
    assert weighted.results["person_search"]["mAP"] != plain.results["person_search"]["mAP"]
    assert weighted.results["detection"] == plain.results["detection"]
    with pytest.raises(ValueError, match="similarity 'l2'.* cosine, score_weighted"):
        Protocol(similarity="l2")


def test_sizes_are_chosen_and_missing_ones_named():
    records = make_records()
    lists = make_lists(records)
    table = evaluate(records, lists, gallery_sizes=[8, -1]).table
    assert {row["gallery"] for row in table.rows} == {"G8", "all", SUBSET}
    with pytest.raises(ValueError, match="gallery size 50.* 4, 8; -1"):
        evaluate(records, lists, gallery_sizes=[50])
    # A set without lists has one gallery, whatever is asked for.
    assert {row["gallery"] for row in evaluate(records, gallery_sizes=[50]).table.rows} == {"all"}


def test_a_set_of_one_camera_has_no_rows_across_cameras():
    records = make_records(cameras=1)
    table = evaluate(records).table
    assert {row["cameras"] for row in table.rows} == {"all"}
    assert table.notes == [
        "the images are of 1 known cameras: no rows for cross_camera, junk_same_camera"
    ]
    records[0]["camera_id"], records[1]["camera_id"] = 5, -1
    assert "1 images of unknown camera" in evaluate(records).table.notes[0]


def test_queries_that_nobody_can_answer_are_counted_and_give_no_nan(tmp_path):
    records = make_records()
    for record in records:
        for query in record.get("queries", ()):
            query["person_id"] = 99
    table = evaluate(records).table
    for row in table.rows:
        assert row["mAP"] is None and row["top1"] is None and row["mAP_low"] is None
        assert row["queries"] == 0 and row["queries_without_match"] > 0
        assert row["note"] == "the person of no query is in its gallery"
    table.write(tmp_path, "x")
    written = (tmp_path / "person_search_table.csv").read_text()
    assert "nan" not in written.lower()
    json.loads((tmp_path / "person_search_table.json").read_text(), parse_constant=pytest.fail)


def test_a_set_without_queries_says_so():
    records = [{k: v for k, v in r.items() if k != "queries"} for r in make_records()]
    table = evaluate(records).table
    assert {row["note"] for row in table.rows} == {"the set has no query"}


def test_no_detections_at_all_rate_zero():
    records = make_records()
    inputs, outputs = fake_model.run_model(records)
    for output in outputs:
        output["instances"] = output["instances"][:0]
    evaluator = PersonSearchEvaluator(dataset_name=NAME, distributed=False)
    evaluator.process(inputs, outputs)
    lists = make_lists(records)
    evaluation = evaluate_detection_set(
        collect(evaluator._images),
        records,
        Protocol(),
        search_galleries=lists,
        table=TableOptions(bootstrap=10),
    )
    for row in evaluation.table.rows:
        assert row["detections"] == 0 and (row["mAP"] == 0 or row["queries"] == 0)


def test_csv_holds_the_rows():
    records = make_records()
    table = evaluate(records, make_lists(records)).table
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert list(rows[0]) == table.columns and len(rows) == len(table.rows)
    for text, row in zip(rows, table.rows):
        for key, value in row.items():
            if isinstance(value, float):
                assert float(text[key]) == pytest.approx(value, abs=5e-5)
            else:
                assert text[key] == ("" if value is None else str(value))


def test_the_printed_table_joins_modes_that_agree():
    records = make_records()
    for record in records:
        for annotation in record["annotations"]:
            annotation["bbox"] = [round(edge) for edge in annotation["bbox"]]
    printed = str(evaluate(records).table)
    assert "both" in printed and "corrected" not in printed
    printed = str(evaluate(records, make_lists(records)).table)
    assert "compat" in printed and "nan" not in printed.lower()


def test_given_boxes_travel_through_the_file(tmp_path):
    records = make_records()
    fake_model.register(NAME, records)
    evaluator = PersonSearchEvaluator(
        dataset_name=NAME,
        output_dir=str(tmp_path / "live"),
        table=TableOptions(bootstrap=10),
        distributed=False,
    )
    inputs, outputs = fake_model.run_model(records)
    for output, given in zip(outputs, ground_truth_run(records)[1]):
        output["gt_instances"] = given["instances"]
    evaluator.process(inputs, outputs)
    evaluator.evaluate()
    path = tmp_path / "live" / "person_search_detections.npz"
    loaded, metadata = load_detections(path)
    assert loaded.has_gt_boxes and metadata["version"] == 2
    assert len(loaded.gt_boxes) == sum(len(r["annotations"]) for r in records)
    evaluate_detections_file(
        path, records, output_dir=tmp_path / "again", table=TableOptions(bootstrap=10)
    )
    live, again = (
        (tmp_path / d / "person_search_table.csv").read_text() for d in ("live", "again")
    )
    assert live == again and "ground_truth" in live


def test_given_boxes_are_never_worse_found():
    records = make_records()
    table = evaluate(records, with_gt=True).table
    rows = table.select(boxes="ground_truth", mode="corrected", rerank="none")
    assert rows and all(row["detections"] > 0 for row in rows)


def test_a_query_without_its_own_given_box_is_named_and_not_reranked():
    records = make_records()
    detections = detections_of(records, with_gt=True)
    detections.gt_boxes = detections.gt_boxes + 40
    table = evaluate_detection_set(
        detections, records, Protocol(), table=TableOptions(bootstrap=10)
    ).table
    assert len(table.notes) == 1
    assert table.notes[0].startswith("ground_truth ") and "query 0: " in table.notes[0]
    assert table.select(boxes="ground_truth", rerank="none")
    assert not table.select(boxes="ground_truth", rerank="cbgm")
    assert table.select(boxes="detected", rerank="cbgm")


class Compact:
    """Lists as the loader of CUHK-SYSU has them; counts what is read."""

    def __init__(self, lists):
        self._lists, self.read = lists, []

    def __iter__(self):
        return iter(self._lists)

    def __len__(self):
        return len(self._lists)

    def __bool__(self):
        return True

    def compact(self, name):
        self.read.append(name)
        arrays = self._lists[name]
        entries = np.flatnonzero(~np.isnan(arrays["boxes"][:, 0]))
        return SimpleNamespace(
            query_ids=arrays["query_ids"],
            offsets=arrays["offsets"],
            images=arrays["images"].astype(np.int32),
            match_entries=entries,
            match_boxes=arrays["boxes"][entries],
        )


def test_compact_lists_give_the_same_and_only_what_is_needed_is_read():
    records = make_records()
    lists = make_lists(records)
    compact = Compact(lists)
    assert evaluate(records, compact).table.rows == evaluate(records, lists).table.rows
    assert sorted(compact.read) == ["G4", "G8", SUBSET]
    compact.read.clear()
    evaluate(records, compact, gallery_sizes=[8], protocol=Protocol(gallery="all"))
    assert compact.read == ["G8", SUBSET]
    compact.read.clear()
    evaluate_detection_set(
        detections_of(records), records, Protocol(gallery="G4"), search_galleries=compact
    )
    assert compact.read == ["G4"]


def test_the_only_list_of_a_set_is_its_gallery_and_no_part_of_a_pool():
    """Such as the frames far enough from the query's of a video."""
    records = make_records()
    lists = {"gap25": make_lists(records)["G8"]}
    evaluation = evaluate(records, lists)
    assert evaluation.protocol.gallery == "gap25"
    assert {row["gallery"] for row in evaluation.table.rows} == {"gap25", "all"}
    plain = evaluate(records).table
    for mode in ("corrected", "compat"):
        keys = {"gallery": "all", "mode": mode}
        assert evaluation.table.select(**keys) == plain.select(**keys)


def test_images_of_a_list_that_the_set_does_not_have_are_named():
    records = make_records()
    lists = make_lists(records)
    lists["G8"]["images"][3] = 24
    with pytest.raises(ValueError, match="gallery 'G8': entry 3 of query 0 .*image 24"):
        evaluate(records, lists)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda g: g.pop("boxes"), "gallery 'G4': boxes"),
        (lambda g: g["query_ids"].__setitem__(0, 77), "gallery 'G4': query 77"),
        (lambda g: g["query_ids"].__setitem__(0, 1), "gallery 'G4': query_ids"),
        (lambda g: g.update(query_ids=g["query_ids"][1:]), "gallery 'G4': .*offsets"),
    ],
)
def test_lists_that_do_not_fit_the_set_are_refused(change, message):
    records = make_records()
    lists = make_lists(records)
    change(lists["G4"])
    with pytest.raises(ValueError, match=message):
        evaluate(records, lists)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cameras": ["front"]}, "cameras .*'front'.* all, cross_camera"),
        ({"modes": []}, "modes .*corrected, compat"),
        ({"cbgm_k1": 0}, "cbgm_k1 0"),
        ({"bootstrap": -1}, "bootstrap -1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TableOptions(**options)


def test_lists_in_another_order_of_queries_are_the_same_lists():
    records = make_records()
    lists = {"G8": make_lists(records)["G8"]}
    ids = lists["G8"]["query_ids"]
    backwards = np.arange(len(ids))[::-1]
    counts = np.diff(lists["G8"]["offsets"])
    entries = np.concatenate([np.arange(*lists["G8"]["offsets"][q : q + 2]) for q in backwards])
    turned = {
        "G8": {
            "query_ids": ids[backwards],
            "offsets": np.concatenate([[0], np.cumsum(counts[backwards])]),
            "images": lists["G8"]["images"][entries],
            "boxes": lists["G8"]["boxes"][entries],
        }
    }
    (one,), (other,) = (galleries_from_metadata(g, ids, len(records)) for g in (lists, turned))
    for name in ("offsets", "images", "filled", "boxes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert isinstance(GalleryProtocol(one).gallery, Gallery)
