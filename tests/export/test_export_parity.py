"""check_parity: equal networks pass; the worst field of others is named."""

import copy

import pytest
import torch

from kd_search.export import (
    ExportParityError,
    check_parity,
    export_torchscript,
    load_exported,
    probe_images,
)
from kd_search.export.exported_file import Exported


class Answers(torch.nn.Module):
    """The traced network, with its answers changed by ``change(boxes, scores, embeddings)``."""

    def __init__(self, module, change=None, change_queries=None):
        super().__init__()
        self.module, self.change, self.change_queries = module, change, change_queries

    def forward(self, image):
        answers = [x.clone() for x in self.module(image)]
        return answers if self.change is None else self.change(*answers)

    def embed(self, image, boxes):
        found = self.module.embed(image, boxes)
        return found if self.change_queries is None else self.change_queries(found)


def test_equal_networks_differ_by_nothing(network, tmp_path):
    path = tmp_path / "tiny.ts"
    report = export_torchscript(network.model, path, cfg=network.cfg, check_images=network.images)
    assert report["max_difference"] == dict.fromkeys(
        ("boxes", "scores", "embeddings", "query_embeddings"), 0.0
    )
    assert [row["size"] for row in report["images"]] == [list(i.shape[1:]) for i in network.images]
    counts = [row["detections"] for row in report["images"]]
    assert report["zero_detections"] and 0 in counts and max(counts) >= 3
    assert check_parity(network.model, load_exported(path), network.images) == report
    some = [image for image, count in zip(network.images, counts) if count]
    assert not check_parity(network.model, load_exported(path), some)["zero_detections"]


@pytest.mark.parametrize("field", ("boxes", "scores", "embeddings"))
@pytest.mark.parametrize("wrong", (1e-3, float("nan")), ids=("off", "nan"))
def test_the_worst_field_and_its_image_are_named(fpn, traced_fpn, field, wrong):
    def change(boxes, scores, embeddings):
        answers = {"boxes": boxes, "scores": scores, "embeddings": embeddings}
        if len(boxes) == 3:  # one of the images only
            answers[field].view(-1)[1] += wrong * answers[field].abs().max().clamp(min=1)
        return tuple(answers.values())

    number = "nan" if wrong != wrong else "0.001"
    expected = f"{field} by {number} .* in image 2 of 33x150"
    with pytest.raises(ExportParityError, match=expected):
        check_parity(fpn.model, Exported(Answers(traced_fpn, change), {}), fpn.images)


def test_wrong_query_embeddings_are_found(fpn, traced_fpn):
    exported = Exported(Answers(traced_fpn, change_queries=lambda x: x + 2e-5), {})
    with pytest.raises(ExportParityError, match="query_embeddings by 2e-05"):
        check_parity(fpn.model, exported, fpn.images)
    check_parity(fpn.model, exported, fpn.images, tolerance=1e-4)


def test_a_detection_more_or_less_is_found(fpn, traced_fpn):
    exported = Exported(Answers(traced_fpn, lambda *answers: [x[:-1] for x in answers]), {})
    with pytest.raises(ExportParityError, match=r"boxes are \(3, 4\) instead of \(4, 4\) in image"):
        check_parity(fpn.model, exported, fpn.images)


def test_other_weights_are_found_and_nothing_is_written(fpn, tmp_path, monkeypatch):
    other = copy.deepcopy(fpn.model)
    with torch.no_grad():
        other.roi_heads.reid.head.linear.weight.mul_(-1)
    monkeypatch.setattr(
        "kd_search.export.torchscript.trace_person_search",
        lambda model, sample: original(other, sample),
    )
    from kd_search.export.tracing import trace_person_search as original

    path = tmp_path / "tiny.ts"
    path.write_text("an older export")
    with pytest.raises(ExportParityError, match="embeddings by"):
        export_torchscript(fpn.model, path, cfg=fpn.cfg, check_images=fpn.images)
    assert path.read_text() == "an older export"
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.ts"]


def test_the_modes_of_the_model_are_kept(fpn, traced_fpn):
    fpn.model.train()
    fpn.model.backbone.eval()
    try:
        check_parity(fpn.model, Exported(traced_fpn, {}), fpn.images[:1])
        assert fpn.model.training and not fpn.model.backbone.training
    finally:
        fpn.model.eval()


def test_parity_on_no_image_is_no_parity(fpn, traced_fpn):
    with pytest.raises(ValueError, match="image"):
        check_parity(fpn.model, Exported(traced_fpn, {}), [])


def test_probe_images_are_a_flat_one_and_reproducible_noise():
    first, again = probe_images([(8, 9), (40, 30)]), probe_images([(8, 9), (40, 30)])
    assert [tuple(x.shape) for x in first] == [(3, 8, 9), (3, 40, 30)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert first[0].unique().numel() == 1 and first[1].unique().numel() > 100
