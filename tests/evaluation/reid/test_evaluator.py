"""The re-ID evaluator: settings, rules of the set, files, ranks."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from benchmarks._reid_reference import ReIDEntry, search_one_reid_query
from kd_search import add_kd_search_config
from kd_search.evaluation.reid.embeddings import SETTINGS, load_reid_embeddings, merge_entries
from kd_search.evaluation.reid.evaluator import (
    EMBEDDINGS_FILE,
    RESULTS_FILE,
    ReIDEvaluator,
    entries_of,
)
from kd_search.evaluation.reid.protocol import ReIDProtocol, evaluate_reid_embeddings
from tests.evaluation.reid import reid_scenes
from tests.forked import Forked

REPO = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("reid_worker.py")
NAME = "kd_search_test_reid"


def evaluate(inputs, outputs, name=NAME, **options):
    evaluator = ReIDEvaluator(dataset_name=name, **options)
    evaluator.reset()
    for start in range(0, len(inputs), 7):
        evaluator.process(inputs[start : start + 7], outputs[start : start + 7])
    return evaluator.evaluate()


def plain(sample, frames):
    found = reid_scenes.embedding(sample, frames).double().numpy()
    numbers = (sample[key] for key in ("person_id", "camera_id", "frame_id", "sample_id"))
    return ReIDEntry(found, *numbers)


def expected(samples, setting, *, all_images=False, append=False, junk="camera", frames=0):
    """mAP in percent, top-1 and the number of queries, from the definition."""
    of_query, of_gallery = setting.split("-to-")

    def shown(sample, view):
        return range(len(sample["file_names"])) if view == "video" else (0,)

    gallery = []
    for sample in samples:
        if sample["role"] in ("gallery", "both") or (append and sample["role"] == "query"):
            sets = [shown(sample, of_gallery)]
            if of_gallery == "image" and all_images and sample["role"] != "query":
                sets = [(frame,) for frame in range(len(sample["file_names"]))]
            gallery += [plain(sample, frames) for frames in sets]
    answers = [
        search_one_reid_query(
            plain(sample, shown(sample, of_query)), gallery, junk=junk, junk_frames=frames
        )
        for sample in samples
        if sample["role"] in ("query", "both")
    ]
    counted = [answer for answer in answers if answer.num_gt]
    return {
        "mAP": 100 * np.mean([a.ap for a in counted]),
        "top1": 100 * np.mean([a.first_hit_rank == 1 for a in counted]),
        "queries": len(counted),
        "queries_without_match": len(answers) - len(counted),
    }


@pytest.mark.parametrize("images", ["first", "all"])
def test_settings_equal_the_definition(images):
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples)
    inputs, outputs = reid_scenes.run_network(samples, images)
    order = np.random.default_rng(0).permutation(len(inputs) // 2)
    if images == "first":  # one image and one video each, in any order
        order = np.stack([2 * order, 2 * order + 1], axis=1).ravel()
        inputs, outputs = ([values[i] for i in order] for values in (inputs, outputs))
    results = evaluate(inputs, outputs, settings=SETTINGS)
    assert list(results) == ["reid", "reid_i2i", "reid_i2v", "reid_v2i", "reid_v2v"]
    assert results["reid"] == results["reid_i2i"] != results["reid_v2v"]
    for setting, short in zip(SETTINGS, ("i2i", "i2v", "v2i", "v2v")):
        for metric, value in expected(samples, setting, all_images=images == "all").items():
            assert results[f"reid_{short}"][metric] == pytest.approx(value), (setting, metric)


@pytest.mark.parametrize(
    ("metadata", "rules"),
    [
        ({"junk_rule": "none"}, {"junk": "none"}),
        ({"junk_rule": "frames", "junk_frames": 4}, {"junk": "frames", "frames": 4}),
        ({"append_queries": True}, {"append": True}),
    ],
)
def test_rules_come_from_the_set(metadata, rules):
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples, **metadata)
    results = evaluate(*reid_scenes.run_network(samples))
    assert list(results) == ["reid"]
    wanted = expected(samples, "video-to-video", **rules)
    assert {key: results["reid"][key] for key in wanted} == pytest.approx(wanted)
    assert wanted["mAP"] != pytest.approx(expected(samples, "video-to-video")["mAP"])


def test_without_views_videos_and_their_first_frames_are_told_by_length():
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples)
    inputs, outputs = reid_scenes.run_network(samples)
    wanted = evaluate(inputs, outputs, settings=SETTINGS)
    videos = [
        {k: v for k, v in i.items() if k not in ("views", "file_names")} for i in inputs[1::2]
    ]
    both = [
        {"embedding": video["embedding"], "frame_embedding": image["embedding"]}
        for image, video in zip(outputs[::2], outputs[1::2])
    ]
    assert evaluate(videos, both, settings=SETTINGS) == wanted
    stills = [{**i, "views": None} for i in inputs[::2]]
    alone = evaluate(stills, outputs[::2], settings=["video-to-video", "image-to-image"])
    assert alone["reid_v2v"] == alone["reid_i2i"] == wanted["reid_i2i"]


def test_a_still_stands_for_the_query_alone():
    samples = reid_scenes.make_samples(frames=1)
    samples[2]["still"] = "still.jpg"
    assert samples[2]["role"] == "both"
    reid_scenes.register(NAME, samples)
    inputs, outputs = reid_scenes.run_network(samples)
    inputs.insert(0, {**inputs[4], "views": ("image",), "file_names": ["still.jpg"]})
    outputs.insert(0, {"embedding": reid_scenes.embedding(samples[0], (0,))})
    entries = [e for pair in zip(inputs, outputs) for e in entries_of(*pair)]
    embeddings = merge_entries(entries, samples)
    still = np.flatnonzero(embeddings.sample_ids == 2)[0]
    assert embeddings.query_image[still] and not embeddings.gallery_image[still]
    own = embeddings.sample_ids == 2
    assert embeddings.query_image[own].sum() == embeddings.gallery_image[own].sum() == 1
    alone = evaluate(inputs[1:], outputs[1:], settings=["image-to-image"])
    with_still = evaluate(inputs, outputs, settings=["image-to-image"])
    # The still looks like somebody else.
    assert with_still["reid"]["mAP"] < alone["reid"]["mAP"]
    assert with_still["reid"]["queries"] == alone["reid"]["queries"]


def test_files(tmp_path):
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples)
    results = evaluate(
        *reid_scenes.run_network(samples), settings=SETTINGS, output_dir=str(tmp_path)
    )
    document = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert document["dataset"] == NAME and document["metrics"] == results
    assert document["protocol"]["junk"] == {"kind": "camera", "frames": 0}
    queries = document["queries"]["image-to-video"]
    rated = [query["AP"] for query in queries if query["num_gt"]]
    assert np.mean(rated) == pytest.approx(results["reid_i2v"]["mAP"])
    for query in queries:
        right = [rank for rank, m in enumerate(query["matches"], 1) if m["correct"]]
        assert all(m["correct"] == (m["person_id"] == query["person_id"]) for m in query["matches"])
        assert query["first_hit_rank"] == (right[0] if right else query["first_hit_rank"])
    embeddings, metadata = load_reid_embeddings(tmp_path / EMBEDDINGS_FILE)
    assert metadata["dataset"] == NAME
    again = evaluate_reid_embeddings(embeddings, ReIDProtocol(SETTINGS))
    assert again.results == results


def test_truncated_and_other_files_are_named(tmp_path):
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples)
    evaluate(*reid_scenes.run_network(samples), output_dir=str(tmp_path))
    path = tmp_path / EMBEDDINGS_FILE
    whole, content = dict(np.load(path)), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="reid_embeddings.npz: .*truncated"):
        load_reid_embeddings(path)
    np.savez(path, **{**whole, "metadata": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="reid_embeddings.npz: metadata .*allow_pickle"):
        load_reid_embeddings(path)
    np.savez(path, **{**whole, "metadata": np.frombuffer(b"{}", np.uint8)})
    with pytest.raises(ValueError, match="format 'kd_search.reid_embeddings'"):
        load_reid_embeddings(path)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        load_reid_embeddings(tmp_path / "none.npz")


def test_incomplete_runs_are_refused():
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples)
    inputs, outputs = reid_scenes.run_network(samples)
    with pytest.raises(ValueError, match=f"'{NAME}': 1 of 30 samples .*sample 29"):
        evaluate(inputs[:-2], outputs[:-2])
    with pytest.raises(ValueError, match="image-to-video: .*queries as image"):
        evaluate(inputs[1::2], outputs[1::2], settings=["image-to-video"])
    with pytest.raises(ValueError, match="sample 0: .*embedding"):
        evaluate(inputs, [{}] * len(inputs))
    with pytest.raises(ValueError, match="setting 'photo-to-video'"):
        evaluate(inputs, outputs, settings=["photo-to-video"])
    reid_scenes.register(NAME, samples[:-1])
    with pytest.raises(ValueError, match="1 samples .*sample 29"):
        evaluate(inputs, outputs)
    strangers = [{**s, "person_id": s["sample_id"]} for s in samples]
    reid_scenes.register(NAME, strangers)
    alone = [{**i, "person_id": i["sample_id"]} for i in inputs]
    with pytest.raises(ValueError, match="video-to-video: .*20 queries"):
        evaluate(alone, outputs)


def test_training_samples_are_passed_over():
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, [*samples, {"sample_id": 99, "role": "train"}])
    inputs, outputs = reid_scenes.run_network(samples)
    wanted = evaluate(inputs, outputs)
    extra = {"sample_id": 99, "person_id": 0, "camera_id": 0, "role": "train"}
    assert evaluate([extra, *inputs], [{"embedding": torch.ones(6)}, *outputs]) == wanted


def test_built_from_a_config():
    cfg = get_cfg()
    add_kd_search_config(cfg)
    cfg.REID_DATA.TEST.SETTINGS = ["video-to-video", "image-to-video"]
    cfg.TEST.REID.AP_RULE = "exact"
    cfg.TEST.REID.METRIC = "euclidean"
    cfg.TEST.REID.TOP_K = [3]
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples)
    evaluator = ReIDEvaluator(cfg, NAME)
    evaluator.process(*reid_scenes.run_network(samples))
    results = evaluator.evaluate()
    assert list(results["reid"]) == ["mAP", "top3", "queries", "queries_without_match"]
    assert list(results) == ["reid", "reid_v2v", "reid_i2v"]
    by_hand = evaluate(
        *reid_scenes.run_network(samples), metric="euclidean", ap_rule="exact", top_k=[3]
    )
    assert results["reid"] == by_hand["reid"]
    market = evaluate(*reid_scenes.run_network(samples), metric="euclidean", top_k=[3])
    assert market["reid"]["mAP"] != by_hand["reid"]["mAP"]


def test_two_processes_give_the_result_of_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    inherited = os.environ.get("PYTHONPATH")
    if inherited:
        environment["PYTHONPATH"] += os.pathsep + inherited
    processes = [
        Forked(
            [
                *(sys.executable, WORKER, rank, tmp_path / "meeting"),
                *(tmp_path / f"out{rank}", tmp_path / f"returned{rank}.json"),
            ],
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    samples = reid_scenes.make_samples()
    reid_scenes.register(NAME, samples)
    alone = evaluate(*reid_scenes.run_network(samples), settings=SETTINGS)
    first, second = (json.loads((tmp_path / f"returned{rank}.json").read_text()) for rank in (0, 1))
    assert first == json.loads(json.dumps(alone)) and second == {}
    assert len(list((tmp_path / "out0").iterdir())) == 2
    assert not (tmp_path / "out1").exists()
