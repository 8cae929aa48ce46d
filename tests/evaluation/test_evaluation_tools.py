"""kd-search evaluate and compare: same numbers as the evaluator, and refusals."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.cli import compare, evaluate
from kd_search.evaluation import PersonSearchEvaluator, TableOptions
from kd_search.evaluation.search.compare_runs import load_results
from kd_search.evaluation.search.import_arrays import load_plain_arrays
from tests.evaluation.search import fake_model
from tests.evaluation.search.test_protocol_table import make_lists, make_records

NAME = "kd_search_test_tools"


@pytest.fixture
def records():
    records = make_records()
    for index, record in enumerate(records):
        record["file_name"] = f"frames/c{record['camera_id']}s1_{index:06d}.jpg"
    fake_model.register(NAME, records)
    MetadataCatalog.get(NAME).set(
        evaluator_type="person_search", search_galleries=make_lists(records)
    )
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def run_evaluator(records, folder, seed=1):
    evaluator = PersonSearchEvaluator(
        dataset_name=NAME,
        output_dir=str(folder),
        table=TableOptions(bootstrap=50),
        distributed=False,
    )
    evaluator.process(*fake_model.run_model(records, seed=seed))
    evaluator.evaluate()
    return folder


def write_arrays(records, folder, seed=1):
    """The faked model's outputs as somebody else would hand them over."""
    folder.mkdir()
    inputs, outputs = fake_model.run_model(records, seed=seed)
    found = [output["instances"] for output in outputs]
    counts = [len(instances) for instances in found]
    # In any order of images and detections.
    order = np.random.default_rng(0).permutation(sum(counts))
    np.save(folder / "image_index.npy", np.repeat(np.arange(len(found)), counts)[order])
    boxes = np.concatenate([i.pred_boxes.tensor.numpy() for i in found])
    np.save(folder / "boxes.npy", boxes[order])
    np.save(folder / "scores.npy", np.concatenate([i.scores.numpy() for i in found])[order])
    rows = np.concatenate([i.pred_embeddings.numpy() for i in found])
    np.save(folder / "embeddings.npy", rows[order])
    asked = [o["query_embeddings"].numpy() for o in outputs if "query_embeddings" in o]
    np.save(folder / "query_embeddings.npy", np.concatenate(asked))
    names = [os.path.basename(record["file_name"]) for record in records]
    (folder / "images.txt").write_text("\n".join(names) + "\n")
    return folder


def numbers(folder):
    table = json.loads((folder / "person_search_table.json").read_text())["rows"]
    return [
        {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in table
    ]


def test_a_file_of_detections_gives_the_evaluators_numbers(records, tmp_path, capsys):
    live = run_evaluator(records, tmp_path / "live")
    argv = [str(live / "person_search_detections.npz"), "--output", str(tmp_path / "again")]
    assert evaluate.main([*argv, "--bootstrap", "50"]) == 0
    for name in ("person_search_results.json", "person_search_table.csv"):
        assert (live / name).read_text() == (tmp_path / "again" / name).read_text()
    printed = capsys.readouterr().out
    assert "junk_same_camera" in printed and "95 % interval" in printed and "G4" in printed


def test_a_folder_of_arrays_gives_the_evaluators_numbers(records, tmp_path):
    live = run_evaluator(records, tmp_path / "live")
    arrays = write_arrays(records, tmp_path / "arrays")
    argv = [str(arrays), "--dataset", NAME, "--bootstrap", "50"]
    assert evaluate.main([*argv, "--output", str(tmp_path / "out")]) == 0
    assert numbers(tmp_path / "out") == numbers(live)


def test_other_box_formats_lengths_and_orders_of_queries_are_taken(records, tmp_path):
    arrays = write_arrays(records, tmp_path / "arrays")
    expected = load_plain_arrays(arrays, records)
    boxes = np.load(arrays / "boxes.npy").astype(np.float64)
    np.save(arrays / "boxes.npy", np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1))
    np.save(arrays / "embeddings.npy", 7 * np.load(arrays / "embeddings.npy"))
    queries = np.load(arrays / "query_embeddings.npy")
    np.save(arrays / "query_embeddings.npy", queries[::-1])
    np.save(arrays / "query_ids.npy", np.arange(len(queries))[::-1])
    with pytest.raises(ValueError, match="embeddings.npy: "):
        load_plain_arrays(arrays, records, box_format="xywh")
    got = load_plain_arrays(arrays, records, box_format="xywh", normalise=True)
    np.testing.assert_allclose(got.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_allclose(got.embeddings, expected.embeddings, atol=1e-6)
    np.testing.assert_allclose(
        got.query_embeddings[np.argsort(got.query_ids)], expected.query_embeddings, atol=1e-6
    )


class Bomb:
    """Unpickling it makes a folder, which shows that something was executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def save_objects(path, proof):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(proof)], dtype=object), allow_pickle=True)
    path.write_bytes(buffer.getvalue())


def save_archive(path, proof):
    with open(path, "wb") as file:
        np.savez(file, boxes=np.zeros((3, 4)))


@pytest.mark.parametrize(
    "file, write, message",
    [
        ("boxes.npy", save_objects, "Object arrays"),
        ("boxes.npy", lambda p, x: p.write_bytes(pickle.dumps(Bomb(x))), "not an array of numbers"),
        ("boxes.npy", lambda p, x: p.write_bytes(p.read_bytes()[:-9]), "not an array of numbers"),
        ("boxes.npy", save_archive, "archive"),
        ("boxes.npy", lambda p, x: np.save(p, np.load(p)[:, ::-1]), "boxes end before they start"),
        ("boxes.npy", lambda p, x: np.save(p, np.load(p)[1:]), "boxes has shape"),
        ("scores.npy", lambda p, x: np.save(p, np.load(p)[1:]), "scores has shape"),
        ("scores.npy", lambda p, x: p.unlink(), "no such file"),
        ("image_index.npy", lambda p, x: np.save(p, np.load(p) + 1), "image 24"),
        ("image_index.npy", lambda p, x: np.save(p, np.load(p) / 2), "has type float64"),
        ("images.txt", lambda p, x: p.write_text("stranger.jpg\n"), "line 1: "),
        ("images.txt", lambda p, x: p.write_bytes(b"\xff\xfe\xff"), "not UTF-8 text"),
        ("query_embeddings.npy", lambda p, x: np.save(p, np.load(p)[1:]), "rows, "),
    ],
)
def test_arrays_that_do_not_fit_are_named_and_never_executed(
    records, tmp_path, capsys, file, write, message
):
    arrays = write_arrays(records, tmp_path / "arrays")
    write(arrays / file, tmp_path / "executed")
    assert evaluate.main([str(arrays), "--dataset", NAME]) == 2
    error = capsys.readouterr().err
    assert file in error and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "executed").exists()


def test_images_that_are_missing_from_the_files_are_counted(records, tmp_path, capsys):
    arrays = write_arrays(records, tmp_path / "arrays")
    lines = (arrays / "images.txt").read_text().splitlines()
    index = np.load(arrays / "image_index.npy")
    keep = index < len(lines) - 2
    for name in ("image_index", "boxes", "scores", "embeddings"):
        np.save(arrays / f"{name}.npy", np.load(arrays / f"{name}.npy")[keep])
    (arrays / "images.txt").write_text("\n".join(lines[:-2]))
    assert evaluate.main([str(arrays), "--dataset", NAME]) == 2
    assert "2 of 24 image ids of the dataset have no detections" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nothing.npz"], "nothing.npz: "),
        (["{arrays}"], "--dataset"),
        (["{arrays}", "--dataset", "strange"], "'strange'"),
        (["{arrays}", "--dataset", NAME, "--gallery", "G9"], "gallery 'G9'"),
        (["{arrays}", "--json", "x.json", "--images", "x"], "x.json"),
    ],
)
def test_wrong_calls_are_one_line(records, tmp_path, capsys, argv, message):
    arrays = write_arrays(records, tmp_path / "arrays")
    assert evaluate.main([a.format(arrays=arrays) for a in argv]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and error.startswith("evaluate: ")


def test_two_runs_are_compared(records, tmp_path, capsys):
    one = run_evaluator(records, tmp_path / "one")
    two = run_evaluator(records, tmp_path / "two", seed=2)
    output = tmp_path / "difference.json"
    argv = [str(one), str(two), "--names", "plain", "distilled", "--output", str(output)]
    assert compare.main(argv) == 0
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    means = [load_results(folder)["metrics"]["person_search"]["mAP"] for folder in (one, two)]
    assert [result["mean_a"], result["mean_b"]] == pytest.approx(means)
    assert result["difference"]["mean"] == pytest.approx(means[1] - means[0])
    assert 0 < result["p_value"] <= 1
    assert f"plain: mAP {means[0]:.2f}" in printed
    assert "could be chance" in printed or "hardly chance" in printed
    files = [str(folder / "person_search_detections.npz") for folder in (one, two)]
    assert compare.main([*files, "--names", "plain", "distilled"]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == printed.splitlines()[-1]


def test_a_run_equals_itself(records, tmp_path, capsys):
    one = run_evaluator(records, tmp_path / "one")
    assert compare.main([str(one), str(one)]) == 0
    assert "A and B have the same AP on all" in capsys.readouterr().out


def change(path, **changes):
    file = path / "person_search_results.json"
    document = json.loads(file.read_text())
    # As who edits a file by hand is told to.
    del document["sha256"]
    document.update(changes)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p, d: change(p, dataset="prw_test"), "dataset differs"),
        (
            lambda p, d: change(p, protocol={**d["protocol"], "score_thresh": 0.2}),
            "protocol differs: {a} has score_thresh 0.5, the other 0.2",
        ),
        (lambda p, d: change(p, queries=d["queries"][1:]), "1 queries"),
        (
            lambda p, d: change(p, queries=[{**d["queries"][0], "num_gt": 99}, *d["queries"][1:]]),
            "query 0: num_gt",
        ),
        (lambda p, d: change(p, queries=3), "queries is wrong: "),
        (lambda p, d: (p / "person_search_results.json").write_text("{"), "not a JSON file"),
        (lambda p, d: (p / "person_search_results.json").unlink(), "run the evaluation first"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(records, tmp_path, capsys, spoil, message):
    one = run_evaluator(records, tmp_path / "one")
    two = run_evaluator(records, tmp_path / "two", seed=2)
    spoil(two, load_results(two))
    assert compare.main([str(one), str(two)]) == 2
    error = capsys.readouterr().err
    assert message.format(a=one) in error and len(error.splitlines()) == 1
