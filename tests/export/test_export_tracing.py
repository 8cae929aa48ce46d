"""Results of the traced network equal the model's for all images; what it contains."""

import io
from contextlib import nullcontext

import pytest
import torch
import torchvision
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.proposal_generator import proposal_utils
from tiny import picture, tiny_cfg
from torch import nn

from kd_search.distillation import DistillationTerm, Distiller
from kd_search.export import ExportParityError, export_torchscript, trace_person_search, tracing


def reload(module):
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def search(model, image):
    with torch.no_grad():
        people = model([{"image": image}])[0]["instances"]
    return people.pred_boxes.tensor, people.scores, people.pred_embeddings


def test_reloaded_network_equals_the_model_for_all_sizes_and_counts(network, traced):
    traced = reload(traced)
    counts = []
    for _ in range(2):  # the second time, TorchScript runs what it has optimised
        for image in network.images:
            expected = search(network.model, image)
            counts.append(len(expected[0]))
            for found, wanted in zip(traced(image), expected):
                assert torch.equal(found, wanted)
    assert 0 in counts and len(set(counts)) >= 3


def test_tracing_an_image_without_people_serves_images_with_people(network):
    empty = next(i for i in network.images if len(search(network.model, i)[0]) == 0)
    traced = trace_person_search(network.model, empty)
    for image in network.images:
        for found, wanted in zip(traced(image), search(network.model, image)):
            assert torch.equal(found, wanted)


def test_given_boxes_are_embedded_as_by_the_model(network, traced):
    traced = reload(traced)
    image = network.images[1]
    for count in (5, 0, 1, 3):
        boxes = torch.rand(count, 4) * 30
        boxes[:, 2:] += boxes[:, :2] + 4
        with torch.no_grad():
            expected = network.model.embed([{"image": image}], [boxes])
        assert expected.shape == (count, 8)
        assert torch.equal(traced.embed(image, boxes), expected)


@pytest.mark.parametrize("sample_type", (torch.uint8, torch.float32))
def test_bytes_and_fractions_are_both_taken(fpn, sample_type):
    traced = trace_person_search(fpn.model, picture(5).to(sample_type))
    image = fpn.images[1]
    fractions = image.float() + 0.25
    assert torch.equal(traced(image)[2], traced(image.float())[2])
    for found, wanted in zip(traced(fractions), search(fpn.model, fractions)):
        assert torch.equal(found, wanted)


def test_a_number_of_proposals_that_tracing_baked_in_is_found_out(tmp_path, monkeypatch):
    # Python's len() makes the number of proposals a constant: what the patches are there for.
    cfg = tiny_cfg("fpn", "MODEL.RPN.POST_NMS_TOPK_TEST", 1000)
    model = META_ARCH_REGISTRY.get("PersonSearchRCNN")(cfg).eval()
    sample, image = picture(0, (16, 16)), picture(1, (33, 80))
    arguments = {"cfg": cfg, "sample_image": sample, "check_images": [image]}
    report = export_torchscript(model, tmp_path / "a.ts", **arguments)
    assert report["max_difference"]["boxes"] == 0
    monkeypatch.setattr(tracing, "_exact_tracing", nullcontext)
    with pytest.raises(ExportParityError, match="fails on an image of 33x80"):
        export_torchscript(model, tmp_path / "b.ts", **arguments)
    assert not (tmp_path / "b.ts").exists()


def test_a_head_that_splits_by_count_is_found_out(fpn, tmp_path, monkeypatch):
    # The trap of embedding heads: right on the sample image, wrong wherever the count differs.
    def split_by_count(self, features, instances):
        embeddings = self.embed(features, [x.pred_boxes for x in instances])
        for x, part in zip(instances, embeddings.split([len(x) for x in instances])):
            x.pred_embeddings = part
        return instances

    sample, other = fpn.images[1], fpn.images[3]
    assert len(search(fpn.model, sample)[0]) != len(search(fpn.model, other)[0])
    monkeypatch.setattr(type(fpn.model.roi_heads), "forward_with_given_boxes", split_by_count)
    arguments = {"cfg": fpn.cfg, "sample_image": sample}
    export_torchscript(fpn.model, tmp_path / "a.ts", check_images=[sample], **arguments)
    with pytest.raises(ExportParityError, match="fails on an image of 160x131.*split"):
        export_torchscript(fpn.model, tmp_path / "b.ts", check_images=[other], **arguments)
    assert not (tmp_path / "b.ts").exists()


def test_many_proposals_keep_the_boxes_that_the_model_keeps():
    torch.manual_seed(0)
    boxes = torch.rand(3000, 4) * 900
    boxes[:, 2:] = boxes[:, :2] + 20 + torch.rand(3000, 2) * 200
    # Pairs whose IoU is 0.7 to within rounding, far from the origin.
    boxes[1500:] = boxes[:1500]
    boxes[1500:, 2] = boxes[:1500, 0] + (boxes[:1500, 2] - boxes[:1500, 0]) * 0.7
    scores, levels = torch.rand(3000), torch.arange(3000) % 1500 % 5

    def keep(boxes, scores, levels):
        return proposal_utils.batched_nms(boxes, scores, levels, 0.7)

    few = (boxes[:9], scores[:9], levels[:9])
    with tracing.quiet_torchscript():
        plain = torch.jit.trace(keep, few, check_trace=False)
        with tracing._exact_tracing():
            exact = torch.jit.trace(keep, few, check_trace=False)
    expected = torchvision.ops.batched_nms(boxes, scores, levels, 0.7)
    assert torch.equal(exact(boxes, scores, levels), expected)
    assert torch.equal(exact(*few), torchvision.ops.batched_nms(*few, 0.7))
    # Otherwise the patch has become needless.
    assert not torch.equal(plain(boxes, scores, levels), expected)


def test_patches_do_not_outlive_the_trace(fpn):
    before = proposal_utils.batched_nms
    trace_person_search(fpn.model)
    assert proposal_utils.batched_nms is before
    assert not hasattr(tracing.fast_rcnn, "len")


def test_id_tables_are_left_out_and_the_model_is_kept_as_it_was(network):
    model = network.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any("id_table" in name for name in before)
    model.train()
    model.backbone.eval()
    try:
        traced = trace_person_search(model)
        assert model.training and model.roi_heads.training and not model.backbone.training
    finally:
        model.eval()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    names = [name for name, _ in (*traced.named_parameters(), *traced.named_buffers())]
    assert names and not any("table" in name or "queue" in name for name in names)
    assert not any(parameter.requires_grad for parameter in traced.parameters())
    # In evaluation mode: the same image twice, and no batch statistics moved.
    assert torch.equal(traced(network.images[0])[2], traced(network.images[0])[2])


class BigTerm(DistillationTerm):
    def __init__(self):
        super().__init__()
        self.register_buffer("big", torch.zeros(1000, 1000))


def test_of_a_distiller_the_student_alone_is_exported(fpn):
    distiller = Distiller(student=fpn.model, terms=nn.ModuleDict({"BigTerm": BigTerm()})).eval()
    traced = trace_person_search(distiller)
    assert max(buffer.numel() for buffer in traced.buffers()) < 1000 * 1000
    for found, wanted in zip(traced(fpn.images[1]), search(fpn.model, fpn.images[1])):
        assert torch.equal(found, wanted)


def test_a_plain_detector_and_a_wrong_sample_are_refused(fpn):
    with pytest.raises(ValueError, match="Linear"):
        trace_person_search(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 64\)"):
        trace_person_search(fpn.model, torch.zeros(1, 3, 64, 64))


def test_embedding_heads_with_stripes_max_pooling_and_norm_are_exported_too():
    cfg = tiny_cfg(
        "fpn",
        *("MODEL.REID_HEAD.POOL", "max", "MODEL.REID_HEAD.NUM_STRIPES", 3),
        *("MODEL.REID_HEAD.EMBEDDING_NORM", "BN", "MODEL.RPN.POST_NMS_TOPK_TEST", 5),
    )
    model = META_ARCH_REGISTRY.get("PersonSearchRCNN")(cfg).eval()
    traced = trace_person_search(model)
    image, boxes = picture(2), torch.tensor([[3.0, 4, 40, 60], [50, 5, 90, 95]])
    for given in (boxes, boxes[:1], boxes[:0]):
        with torch.no_grad():
            assert torch.equal(traced.embed(image, given), model.embed([{"image": image}], [given]))
