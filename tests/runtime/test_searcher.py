"""PersonSearcher gives what the training stack gives, and refuses damaged and foreign files."""

import hashlib
import io
import json
import struct
import threading
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from kd_search.runtime import (
    ImageError,
    ModelFileError,
    PersonSearcher,
    ReIDEmbedder,
    manifest_path,
    read_manifest,
    update_manifest,
)


def sorted_people(people):
    order = sorted(range(len(people.scores)), key=lambda i: people.boxes[i].tolist())
    return (people.boxes[order], people.scores[order], people.embeddings[order])


def assert_same_people(ours, theirs):
    assert len(ours.scores) == len(theirs.scores)
    for mine, other, tolerance in zip(
        sorted_people(ours), sorted_people(theirs), (1e-2, 1e-4, 1e-4)
    ):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)


def bomb(side=30000):
    """PNG of 0.9 gigapixels, one bit each, in about 100 KB."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_people_are_those_of_the_training_stack(searcher, files):
    for picture in files.values():
        assert_same_people(searcher.detect(picture.file), picture.people)
    counts = {name: len(picture.people.scores) for name, picture in files.items()}
    assert counts["nobody.png"] == 0 and max(counts.values()) >= 3


def test_scores_descend_and_embeddings_have_length_one(searcher, files):
    people = searcher.detect(files["crowd.jpg"].file)
    assert (np.diff(people.scores) <= 0).all() and len(people.scores) >= 2
    np.testing.assert_allclose(np.linalg.norm(people.embeddings, axis=1), 1, atol=1e-5)


def test_bytes_and_pixels_are_pictures_too(searcher, files):
    file = files["rotated.jpg"].file
    people = searcher.detect(file)
    upright = Image.open(file).transpose(Image.Transpose.ROTATE_270)
    with open(file, "rb") as stream:
        content = stream.read()
    for picture in (content, np.asarray(upright)):
        for ours, theirs in zip(searcher.detect(picture), people):
            np.testing.assert_array_equal(ours, theirs)


def test_given_boxes_are_embedded_as_in_the_training_stack(searcher, files):
    compared = 0
    for picture in files.values():
        found = searcher.embed(picture.file, picture.boxes)
        np.testing.assert_allclose(found, picture.people.query_embeddings, rtol=0, atol=1e-4)
        compared += len(found)
    assert compared >= 10
    assert searcher.embed(files["odd.png"].file, []).shape == (
        0,
        searcher.manifest["embedding_dim"],
    )


def test_detection_and_given_boxes_have_sessions_of_their_own(copied, files):
    """onnxruntime computes all that a session holds, whichever outputs it is asked for."""
    searcher = PersonSearcher.load(copied, threads=1)
    file = files["odd.png"].file
    searcher.detect(file)
    outputs = [{o.name for o in session.get_outputs()} for session in searcher._sessions.values()]
    assert outputs == [{"boxes", "scores", "embeddings", "valid"}]
    searcher.embed(file, [[0, 0, 30, 60]])
    searcher.embed(file, [[0, 0, 30, 60]])
    assert len(searcher._sessions) == 2
    (last,) = list(searcher._sessions.values())[1].get_outputs()
    assert last.name == "query_embeddings"


@pytest.mark.parametrize("box", [[-9, -9, -1, -1], [5, 5, 5, 9], [500, 0, 600, 9], [9, 9, 4, 4]])
def test_a_box_without_area_is_refused(searcher, files, box):
    with pytest.raises(ValueError, match="area"):
        searcher.embed(files["small.png"].file, [box])


def test_many_pictures_with_bad_ones_between(searcher, files, tmp_path):
    good = [files[name].file for name in ("odd.png", "nobody.png", "gray.jpg")]
    empty, cut = tmp_path / "empty.jpg", tmp_path / "cut.jpg"
    empty.write_bytes(b"")
    with open(files["large.jpg"].file, "rb") as stream:
        cut.write_bytes(stream.read()[:3000])
    pictures = [good[0], str(empty), good[1], str(cut), bomb(), str(tmp_path / "gone.jpg"), good[2]]
    done = []
    answers = list(searcher.detect_many(pictures, workers=2, progress=done.append))
    assert [answer.picture for answer in answers] == pictures
    assert done == list(range(1, 8))
    for index, words in ((1, "empty.jpg"), (3, "cut.jpg"), (4, "picture"), (5, "gone.jpg")):
        assert answers[index].people is None
        assert words in answers[index].error and "\n" not in answers[index].error
    for index, name in ((0, "odd.png"), (2, "nobody.png"), (6, "gray.jpg")):
        assert answers[index].error == ""
        assert_same_people(answers[index].people, files[name].people)


def test_a_gigapixel_png_is_refused_from_its_header(searcher):
    content = bomb()
    assert len(content) < 200_000
    with pytest.raises(ImageError) as error:
        searcher.detect(content)
    assert "\n" not in str(error.value)


def test_pixels_above_the_limit_of_the_manifest_are_refused(searcher):
    buffer = io.BytesIO()
    Image.new("1", (8000, 7000)).save(buffer, "PNG")
    with pytest.raises(ImageError, match=r"8000 x 7000 .*max_pixels"):
        searcher.detect(buffer.getvalue())


def test_several_threads_at_once(searcher, files):
    wanted = searcher.detect(files["odd.png"].file)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(searcher.detect(files["odd.png"].file)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for people in found:
        assert_same_people(people, wanted)


# ------------------------------------------------------------------------------------------- faults


def refused(path, words, error=ModelFileError):
    with pytest.raises(error, match=words) as caught:
        PersonSearcher.load(path)
    assert "\n" not in str(caught.value)


def test_the_copy_itself_loads(copied):
    PersonSearcher.load(copied, threads=1)


@pytest.mark.parametrize("place", [0.001, 0.3, 0.9, 0.9999])
def test_a_flipped_byte(copied, place):
    content = bytearray(copied.read_bytes())
    content[int(place * len(content))] ^= 4
    copied.write_bytes(content)
    refused(copied, r"model\.onnx: is (damaged|truncated|not the model)")


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_file(copied, share):
    content = copied.read_bytes()
    copied.write_bytes(content[: int(share * len(content))])
    refused(copied, r"model\.onnx: is truncated")


def test_a_missing_file(tmp_path):
    refused(tmp_path / "gone.onnx", r"gone\.onnx does not exist", FileNotFoundError)


def test_a_missing_manifest(copied):
    manifest_path(copied).unlink()
    refused(copied, r"model\.onnx\.json: .*manifest")


def foreign():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_another_onnx_file(copied):
    copied.write_bytes(foreign().SerializeToString())
    refused(copied, "not the model of")


def test_the_manifest_of_another_model(copied, change):
    change(weights_sha256="0" * 64, file_sha256="1" * 64)
    refused(copied, "not the model of .*another model")


def test_a_changed_manifest(copied, change):
    change(score_threshold=0.99)
    refused(copied, "its own copy of the manifest differs")


def test_a_damaged_manifest(copied):
    path = manifest_path(copied)
    path.write_text(path.read_text().replace('"max_size": 192', '"max_size": 193'))
    refused(copied, r"onnx\.json: .*sha256")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"format": "other"}, "not a manifest"),
        ({"network": "detector"}, "detector"),
        ({"network": "reid", "crop_size": [9, 9]}, "reid network"),
        ({"file_format": "pt2"}, "pt2"),
        ({"min_size": "96"}, "min_size"),
        ({"embedding_dim": True}, "embedding_dim"),
        ({"size_divisibility": 0}, "size_divisibility"),
        ({"input_format": "HSV"}, "input_format"),
    ],
)
def test_wrong_manifests(copied, change, changed, words):
    change(**changed)
    refused(copied, words)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": 1}'])
def test_no_manifest_at_all(copied, text):
    manifest_path(copied).write_text(text)
    refused(copied, r"onnx\.json: ")


def resealed(path, content):
    """Give a file other content, with a manifest that fits."""
    manifest = read_manifest(manifest_path(path))
    path.write_bytes(content)
    manifest |= {"file_sha256": hashlib.sha256(content).hexdigest(), "file_bytes": len(content)}
    manifest_path(path).write_text(json.dumps(manifest))


def test_custom_operators_are_not_run(copied):
    model = onnx.load(copied)
    model.graph.node[0].domain = "evil"
    resealed(copied, model.SerializeToString())
    refused(copied, "custom operator evil::")


def test_weights_in_other_files_are_not_read(copied):
    model = onnx.load(copied)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    resealed(copied, model.SerializeToString())
    refused(copied, "another file")


def test_a_graph_that_onnxruntime_refuses(copied):
    model = onnx.load(copied)
    next(n for n in model.graph.node if n.op_type == "Conv").op_type = "NoSuchOperator"
    resealed(copied, model.SerializeToString())
    refused(copied, "onnxruntime cannot load it")


def test_a_person_search_network_is_no_reid_network(copied):
    with pytest.raises(ModelFileError, match="person_search network, not reid"):
        ReIDEmbedder.load(copied)


def test_a_calibration_is_kept_in_the_manifest(copied):
    calibration = {"points": [{"false_match_rate": 0.01, "threshold": 0.5}]}
    update_manifest(manifest_path(copied), calibration=calibration)
    assert PersonSearcher.load(copied, threads=1).manifest["calibration"] == calibration
    with pytest.raises(ValueError, match="score_threshold"):
        update_manifest(manifest_path(copied), score_threshold=0.1)
