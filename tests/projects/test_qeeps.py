"""Query-guided networks: parts against slow references, pairs, and the search by query."""

import copy
import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import qeeps
import torch
from detectron2.modeling import (
    build_model,
)
from detectron2.utils.events import EventStorage
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qeeps.backbone import PairGates
from qeeps.heads import QuerySimilarity
from qeeps.pairs import PairSource, build_pair_train_loader
from qeeps.rpn import QueryObjectness
from qeeps.search import Found, evaluate_found
from qeeps.shortlist import evaluate_shortlists
from tiny import NUM_IDS, REPO, picture, tiny_cfg, training_input
from tiny_training_set import PEOPLE, forget, register_people, write_pictures
from torch.nn import functional as F

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.config import ConfigError
from kd_search.data import build_person_search_test_loader, register_person_search_coco
from kd_search.data.person_search.register import locate_split
from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.evaluation import PersonSearchEvaluator
from kd_search.evaluation.flat_arrays import Detections, GroundTruth, Queries
from kd_search.evaluation.search.galleries import Gallery, GalleryProtocol
from kd_search.evaluation.search.protocol import Protocol
from kd_search.evaluation.search.ranking import rank_gallery
from kd_search.evaluation.search.test_set import Annotations
from kd_search.experiments import read_study
from kd_search.synthetic import PRESETS, generate_dataset
from tests import forked
from tests.projects.project_files import load_script, merged, name_of, run_script, runnable
from tests.projects.registrations import only_here

registered = only_here("qeeps")


@pytest.fixture(autouse=True)
def _event_storage():
    with EventStorage():
        yield


SPLIT = (
    *("MODEL.BACKBONE.NAME", "build_split_resnet_backbone"),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "QueryGuidedRPN"),
    *("MODEL.ROI_HEADS.NAME", "QueryGuidedROIHeads", "MODEL.QUERY_GUIDED.SPLIT_BLOCK", 1),
)
GUIDED = (*SPLIT, "MODEL.META_ARCHITECTURE", "QueryGuidedRCNN")


def build(*overrides, seed=0):
    torch.manual_seed(seed)
    return build_model(tiny_cfg("c4", *overrides))


def pair_input(ids=(0, -1, 3), person=3, seed=0, present=True):
    """A training pair; the query's picture is another one of the person."""
    x = training_input(ids, seed)
    query = training_input((5, person), seed + 50)
    box = query["instances"].gt_boxes.tensor[1:]
    return {
        **x,
        "query_image": query["image"],
        "query_boxes": box,
        "query_person_id": person,
    }


def open_gates(network):
    """Set all gates to one, exactly."""
    for gates in network.backbone.gates:
        torch.nn.init.zeros_(gates.excite.weight)
        torch.nn.init.constant_(gates.excite.bias, 100.0)


# -------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("position", ["residual", "block"])
def test_with_open_gates_and_no_query_heads_it_is_the_plain_network_to_the_bit(position):
    plain = build(*SPLIT)
    guided = build(
        *GUIDED,
        *("MODEL.QUERY_GUIDED.GATES.POSITION", position),
        *("MODEL.QUERY_GUIDED.RPN.ENABLED", False, "MODEL.QUERY_GUIDED.OIM_ON_QUERY", False),
        *("MODEL.QUERY_GUIDED.SIMILARITY.ENABLED", False),
    )
    missing = guided.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert {name.split(".")[1] for name in missing.missing_keys} == {"gates"}
    open_gates(guided)
    batch = [pair_input(), pair_input((2, 1), 2, seed=1)]
    results = []
    for network in (plain, guided):
        torch.manual_seed(5)
        losses, outputs = network.forward_train(copy.deepcopy(batch))
        sum(losses.values()).backward()
        network.roi_heads.reid.id_table.commit()
        results.append((losses, outputs))
    assert results[0][0].keys() == results[1][0].keys()
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name]), name
    for name, parameter in plain.named_parameters():
        other = dict(guided.named_parameters())[name]
        assert torch.equal(parameter.grad, other.grad), name
    assert torch.equal(plain.id_table.rows, guided.id_table.rows)
    # The query's picture is in the batch statistics of the guided network as well.
    guided.load_state_dict(plain.state_dict(), strict=False)
    plain.eval()
    guided.eval()
    with torch.no_grad():
        (want,) = plain([training_input()])
        (have,) = guided([training_input()])
        query = guided.prepare_query(picture(9), torch.tensor([4.0, 5.0, 40.0, 80.0]))
        (found,) = guided.search(query, [training_input()])
    assert len(want["instances"])
    for result in (have, found):
        for field in ("scores", "pred_embeddings"):
            assert torch.equal(want["instances"].get(field), result["instances"].get(field))


def test_an_existing_network_with_the_usual_split_loads_with_renamed_blocks(caplog):
    usual = build()
    guided = build(*GUIDED, seed=1)
    missing = guided.load_state_dict(usual.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert {tuple(n.split(".")[:2]) for n in missing.missing_keys} == {
        ("backbone", "gates"),
        ("proposal_generator", "query_objectness"),
        ("roi_heads", "similarity"),
    }
    ours, theirs = guided.state_dict(), usual.state_dict()
    for here, there in (
        ("backbone.res4.0.conv1.weight", "backbone.res4.0.conv1.weight"),
        ("roi_heads.res5.res4.1.conv2.weight", "backbone.res4.1.conv2.weight"),
        ("roi_heads.res5.res5.1.conv1.weight", "roi_heads.res5.1.conv1.weight"),
    ):
        assert torch.equal(ours[here], theirs[there])
    # The two halves of res4 compute what the whole stage does.
    x = torch.randn(1, *ours["backbone.res4.0.conv1.weight"].shape[1:2], 8, 8)
    for network in (usual, guided):
        network.eval()
    with torch.no_grad():
        want = usual.backbone.res4(x)
        have = guided.roi_heads.res5.res4(guided.backbone.res4(x))
    assert torch.equal(want, have)


def test_a_split_outside_of_res4_is_refused_by_its_key():
    with pytest.raises(ConfigError, match="SPLIT_BLOCK 3 "):
        build(*GUIDED, "MODEL.QUERY_GUIDED.SPLIT_BLOCK", 3)


@pytest.mark.parametrize(
    "key, value",
    [
        ("GATES.POSITION", "inside"),
        ("GATES.QUERY_STREAM", "none"),
        ("SIMILARITY.RANK_BY", "score"),
        ("SIMILARITY.REGIONS", "some"),
    ],
)
def test_an_unknown_choice_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigError, match=f"{key} '{value}'"):
        build(*GUIDED, f"MODEL.QUERY_GUIDED.{key}", value)


def test_weights_of_a_classifier_fill_both_sides_of_the_split(tmp_path):
    usual = {}
    for name, value in build().state_dict().items():
        if name.startswith(("backbone.", "roi_heads.res5.")):
            usual[name.replace("backbone.", "").replace("roi_heads.", "")] = value
    torch.save({"model": usual, "matching_heuristics": True}, tmp_path / "classifier.pth")
    guided = build(*GUIDED, seed=1)
    PersonSearchCheckpointer(guided).load(str(tmp_path / "classifier.pth"))
    ours = guided.state_dict()
    for here, there in (
        ("backbone.res4.0.conv1.weight", "res4.0.conv1.weight"),
        ("roi_heads.res5.res4.1.conv2.weight", "res4.1.conv2.weight"),
        ("roi_heads.res5.res5.0.conv1.weight", "res5.0.conv1.weight"),
    ):
        assert torch.equal(ours[here], usual[there]), here


@pytest.mark.parametrize("path", runnable("QEEPS"), ids=name_of)
def test_every_config_is_a_split_network_and_pairs_have_it_as_their_start(path):
    cfg = merged(path)
    assert cfg.MODEL.BACKBONE.NAME == "build_split_resnet_backbone"
    guided = cfg.MODEL.META_ARCHITECTURE == "QueryGuidedRCNN"
    assert guided == path.name.startswith("qeeps_")
    if guided:
        plain = merged(path.with_name(path.name.replace("qeeps_", "split_")))
        assert cfg.MODEL.WEIGHTS == f"{plain.OUTPUT_DIR}/model_final.pth"
    cfg.MODEL.DEVICE, cfg.MODEL.OIM.NUM_IDS = "cpu", 3
    network = build_model(cfg)
    assert hasattr(network, "search") == guided


def test_both_kinds_are_students_of_a_table_and_of_a_detector(tmp_path):
    table = IDTableFile(
        rows=F.normalize(torch.randn(NUM_IDS, 8)),
        counts=torch.ones(NUM_IDS, dtype=torch.int64),
        unlabelled=torch.zeros(0, 8),
        person_ids=list(range(NUM_IDS)),
        source="mean",
        dataset="",
        teacher_sha256="0" * 64,
        teacher_config="",
    )
    table.save(tmp_path / "table.pth")
    teacher = tiny_cfg("c4", *SPLIT)
    (tmp_path / "teacher.yaml").write_text(teacher.dump())
    torch.manual_seed(2)
    torch.save({"model": build_model(teacher).state_dict()}, tmp_path / "teacher.pth")
    for arch in ("PersonSearchRCNN", "QueryGuidedRCNN"):
        student = build(
            *SPLIT,
            *("MODEL.META_ARCHITECTURE", "Distiller", "DISTILLATION.STUDENT_META_ARCH", arch),
            *("MODEL.OIM.ENABLED", False, "DISTILLATION.ID_TABLE.QUEUE_SIZE", 5),
            *("DISTILLATION.ID_TABLE.PATH", str(tmp_path / "table.pth")),
            *("DISTILLATION.TERMS", ["IDTableTerm", "RegionClassTerm", "AnchorClassTerm"]),
            *("DISTILLATION.TEACHER.CONFIG_FILE", str(tmp_path / "teacher.yaml")),
            *("DISTILLATION.TEACHER.WEIGHTS", str(tmp_path / "teacher.pth")),
        )
        losses = student([pair_input(), pair_input((2, 1), 2, seed=1)])
        assert {"loss_id_table", "loss_region_soft", "loss_anchor_soft"} < losses.keys(), losses
        assert ("loss_query_rpn" in losses) == (arch == "QueryGuidedRCNN")
        sum(losses.values()).backward()


# ----------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize("separate", [False, True])
def test_gates_are_the_sigmoid_of_two_layers_on_both_means(separate):
    gates = PairGates(6, reduction=4, separate=separate, initial_bias=0.0).double()
    gallery, query = torch.randn(2, 6).double(), torch.randn(2, 6).double()
    ours, theirs = gates(gallery, query)
    for n in range(2):
        x = [*gallery[n].tolist(), *query[n].tolist()]
        hidden = [
            max(0.0, b + sum(w * v for w, v in zip(row, x)))
            for row, b in zip(gates.squeeze.weight.tolist(), gates.squeeze.bias.tolist())
        ]
        logits = [
            b + sum(w * v for w, v in zip(row, hidden))
            for row, b in zip(gates.excite.weight.tolist(), gates.excite.bias.tolist())
        ]
        want = torch.tensor([1 / (1 + np.exp(-v)) for v in logits]).double()
        assert torch.allclose(ours[n, :, 0, 0], want[:6])
        assert torch.allclose(theirs[n, :, 0, 0], want[6:] if separate else want)


@pytest.mark.parametrize("position", ["residual", "block"])
def test_the_backbone_gates_every_block_by_both_pictures(position):
    network = build(*GUIDED, "MODEL.QUERY_GUIDED.GATES.POSITION", position).eval().double()
    backbone = network.backbone
    ours, theirs = torch.randn(1, 3, 64, 80).double(), torch.randn(1, 3, 96, 64).double()
    with torch.no_grad():
        have = [maps["res4"] for maps in backbone.forward_pair(ours, theirs)]
        maps = [backbone.stem(ours), backbone.stem(theirs)]
        number = 0
        for stage in (backbone.res2, backbone.res3, backbone.res4):
            for block in stage:
                if position == "block":
                    branches, shortcuts = [block(x) for x in maps], None
                else:
                    branches = [block.conv2(F.relu(block.conv1(x))) for x in maps]
                    shortcuts = [x if block.shortcut is None else block.shortcut(x) for x in maps]
                means = [branch.flatten(2).sum(2) / branch[0, 0].numel() for branch in branches]
                gate, _ = backbone.gates[number](*means)
                maps = [branch * gate for branch in branches]
                if shortcuts:
                    maps = [F.relu(x + shortcut) for x, shortcut in zip(maps, shortcuts)]
                number += 1
    assert number == len(backbone.gates) == 5
    for x, want in zip(have, maps):
        assert torch.allclose(x, want, atol=1e-12)


def test_a_query_stream_with_itself_serves_all_gallery_pictures():
    network = build(*GUIDED, "MODEL.QUERY_GUIDED.GATES.QUERY_STREAM", "self").eval()
    backbone, query = network.backbone, torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stream = backbone.query_stream(query)
        for seed in range(2):
            gallery = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
            ours, theirs = backbone.forward_pair(gallery, query)
            assert torch.equal(theirs["res4"], stream.features["res4"])
            assert torch.equal(ours["res4"], backbone.forward_gallery(gallery, stream)["res4"])
    assert backbone.query_is_reusable
    assert not build(*GUIDED).backbone.query_is_reusable


# -------------------------------------------------------------------------- proposals and heads


def test_the_objectness_of_the_query_is_added_to_that_of_the_rpn():
    network = build(*GUIDED).eval()
    rpn, seen = network.proposal_generator, []
    original = type(rpn).__mro__[1].predict_proposals

    def record(self, anchors, logits, *rest):
        seen.append(logits[0])
        return original(self, anchors, logits, *rest)

    query = network.prepare_query(picture(9), torch.tensor([4.0, 5.0, 40.0, 80.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(rpn).__mro__[1], "predict_proposals", record)
        network.search(query, [training_input()])
        rpn.query_objectness.objectness_logits.bias.data += 2.5
        network.search(query, [training_input()])
        network([training_input()])
    guided, raised, plain = seen
    assert torch.allclose(raised - guided, torch.full_like(guided, 2.5), atol=1e-5)
    assert not torch.allclose(plain, guided)


def test_the_objectness_loss_of_the_query_counts_its_person_alone_as_positive():
    network = build(*GUIDED)
    rpn, batch = network.proposal_generator, [pair_input(), pair_input((2, 1), 5, seed=1)]
    seen = []
    original = rpn.label_and_sample_anchors

    def record(anchors, targets):
        result = original(anchors, targets)
        seen.append((targets, result[0]))
        return result

    logits = []
    objectness = rpn.query_objectness.forward
    rpn.query_objectness.forward = lambda *args: logits.append(objectness(*args)) or logits[-1]
    rpn.label_and_sample_anchors = record
    losses, _ = network.forward_train(batch)
    targets, labels = seen[-1]
    # Person 3 of the first pair is there once; person 5 of the second is not.
    assert [x.gt_person_ids.tolist() for x in targets] == [[3], []]
    assert labels[0].eq(1).any() and not labels[1].eq(1).any()
    total = 0.0
    maps = logits[0].double()
    for n, row in enumerate(labels):
        flat = maps[n].permute(1, 2, 0).reshape(-1)
        for logit, label in zip(flat.tolist(), row.tolist()):
            if label >= 0:
                total += np.log1p(np.exp(-logit if label else logit))
    want = total / (rpn.batch_size_per_image * 2)
    assert losses["loss_query_rpn"].item() == pytest.approx(want, rel=1e-5)


def test_similarity_is_a_linear_layer_on_the_normalised_squared_difference():
    torch.manual_seed(3)
    network = QuerySimilarity(4)
    torch.nn.init.normal_(network.norm.weight)
    query, gallery = torch.randn(5, 4), torch.randn(5, 4)
    have = network(query, gallery).double()
    x = (query.double() - gallery.double()) ** 2
    mean, variance = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
    scaled = (x - mean) / (variance + network.norm.eps).sqrt() * network.norm.weight
    want = (scaled + network.norm.bias) @ network.linear.weight[0].double() + network.linear.bias
    assert torch.allclose(have, want, atol=1e-5)


def test_gradients_of_the_parts_are_those_of_finite_differences():
    torch.manual_seed(1)
    gates = PairGates(4, reduction=2, separate=True, initial_bias=0.3).double()
    means = [torch.randn(2, 4).double().requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(gates, means)
    objectness = QueryObjectness(4, 3, reduction=2).double()
    for parameter in objectness.parameters():
        torch.nn.init.normal_(parameter)
    inputs = [torch.randn(1, 4, *size).double().requires_grad_() for size in ((3, 4), (2, 2))]
    assert torch.autograd.gradcheck(objectness, inputs)
    # Computed in single precision whatever the input: against a reference in double.
    similarity = QuerySimilarity(3)
    pair = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    (similarity(*pair) * torch.arange(1, 5)).sum().backward()
    weight, bias = (x.detach().double().numpy() for x in similarity.linear.parameters())

    def reference(query, gallery):
        x = (query - gallery) ** 2
        scaled = (x - x.mean(0)) / np.sqrt(x.var(0) + similarity.norm.eps)
        return ((scaled @ weight[0] + bias) * np.arange(1, 5)).sum()

    values = [x.detach().double().numpy() for x in pair]
    for side in range(2):
        want = np.zeros_like(values[side])
        for place in np.ndindex(*want.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [value.copy() for value in values]
                moved[side][place] += step
                ends.append(reference(*moved))
            want[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(pair[side].grad.numpy(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("regions", ["people", "all"])
def test_the_similarity_loss_has_the_pairs_of_its_keys(regions, unlabelled):
    node = "MODEL.QUERY_GUIDED.SIMILARITY"
    network = build(
        *GUIDED,
        *(f"{node}.REGIONS", regions, f"{node}.UNLABELLED_ARE_NEGATIVE", unlabelled),
        *(f"{node}.LOSS_WEIGHT", 2.0),
    )
    seen = []
    similarity = network.roi_heads.similarity
    original = similarity.forward
    similarity.forward = lambda q, g: seen.append((q, g, original(q, g))) or seen[-1][2]
    losses, outputs = network.forward_train([pair_input(), pair_input((2, 1), 2, seed=1)])
    ids, owner = [], []
    for n, p in enumerate(outputs.regions.proposals):
        for label, person in zip(p.gt_classes.tolist(), p.gt_person_ids.tolist()):
            if label == 0 or regions == "all":
                ids.append(person if label == 0 else -2)
                owner.append(n)
    kept = [i for i, person in enumerate(ids) if unlabelled or person != -1]
    assert any(person == -1 for person in ids)
    ((_, _, logits),) = seen
    assert len(logits) == len(kept)
    wanted = [3, 2]
    total = 0.0
    for logit, i in zip(logits.tolist(), kept):
        total += np.log1p(np.exp(-logit if ids[i] == wanted[owner[i]] else logit))
    have = losses["loss_similarity"].item()
    assert have == pytest.approx(2.0 * total / len(kept), rel=1e-4)


def test_oim_learns_from_the_query_in_the_same_commit():
    network = build(*GUIDED)
    # Person 4 is in the query's picture alone.
    network.forward_train([pair_input((0, 1), person=4)])
    network.id_table.commit()
    assert network.id_table.rows[4].norm().item() == pytest.approx(1, abs=1e-5)
    plain = build(*GUIDED, "MODEL.QUERY_GUIDED.OIM_ON_QUERY", False)
    plain.forward_train([pair_input((0, 1), person=4)])
    plain.id_table.commit()
    assert not plain.id_table.rows[4].any()


@pytest.mark.parametrize("ids", [(), (-1, -1)])
def test_losses_are_finite_without_people_or_labels(ids):
    network = build(*GUIDED)
    losses, _ = network.forward_train([pair_input(ids, person=2)])
    sum(losses.values()).backward()
    assert {"loss_query_rpn", "loss_similarity", "loss_oim"} < losses.keys()
    for name, value in losses.items():
        assert torch.isfinite(value), name
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_every_new_part_learns():
    # Few hidden units of the gates could all be off.
    keys = ("GATES.REDUCTION", "RPN.REDUCTION")
    network = build(*GUIDED, *(x for key in keys for x in (f"MODEL.QUERY_GUIDED.{key}", 1)))
    losses, _ = network.forward_train([pair_input(), pair_input((2, 1), 2, seed=1)])
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_plain_batches_are_refused_in_training():
    with pytest.raises(ValueError, match="build_train_loader"):
        build(*GUIDED).forward_train([training_input()])


def test_a_query_that_is_paired_with_itself_becomes_the_most_similar_person():
    network = build(*GUIDED, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", [57.0] * 3)
    colours = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=torch.uint8)
    batch = []
    for person, other in itertools.permutations(range(3), 2):
        x = training_input((person, other), seed=70 + person)
        boxes = x["instances"].gt_boxes.tensor
        for who, (x0, y0, x1, y1) in zip((person, other), boxes.int().tolist()):
            x["image"][:, y0:y1, x0:x1] = colours[who][:, None, None]
        batch.append(
            {**x, "query_image": x["image"], "query_boxes": boxes[:1], "query_person_id": person}
        )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(15):
        losses, _ = network.forward_train(copy.deepcopy(batch[::2]))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    network.eval()
    ranks = []
    for x in batch:
        query = network.prepare_query(x["query_image"], x["query_boxes"][0])
        plain = {k: x[k] for k in ("image", "height", "width")}
        boxes = x["instances"].gt_boxes.tensor
        (found,) = network.search(query, [{**plain, "gallery_boxes": boxes}])
        ranks.append(int(found["instances"].pred_similarities.argmax()))
    assert ranks == [0] * len(batch)


# ----------------------------------------------------------------------------------------- pairs

people = st.lists(st.integers(-1, 4), max_size=4)


def records(pictures, cameras=None):
    return [
        {
            "file_name": f"{n}.jpg",
            "camera_id": None if cameras is None else cameras[n],
            "annotations": [{"person_id": person} for person in ids],
        }
        for n, ids in enumerate(pictures)
    ]


@given(st.lists(people, max_size=8))
def test_all_pairs_are_the_ordered_pairs_of_every_person(pictures):
    counts = Counter(i for ids in pictures for i in set(ids) if i >= 0)
    want = sum(n * (n - 1) for n in counts.values())
    if not want:
        with pytest.raises(ValueError, match="no pairs"):
            PairSource(records(pictures))
        return
    source = PairSource(records(pictures))
    pairs = [source.pair(number, 0, 0) for number in range(len(source))]
    assert len(set(pairs)) == len(pairs) == want
    for pair in pairs:
        assert pair.gallery != pair.query
        assert pair.person_id in pictures[pair.gallery]
        assert pair.person_id in pictures[pair.query]


@given(st.lists(people, max_size=8), st.integers(0, 10), st.data())
def test_sampled_pairs_have_every_picture_once_and_another_camera_where_there_is_one(
    pictures, seed, data
):
    cameras = data.draw(st.lists(st.integers(0, 2), min_size=len(pictures), max_size=len(pictures)))
    counts = Counter(i for ids in pictures for i in set(ids) if i >= 0)
    want = [n for n, ids in enumerate(pictures) if any(i >= 0 and counts[i] > 1 for i in ids)]
    if not want:
        return
    source = PairSource(records(pictures, cameras), mode="sampled")
    assert source.galleries.tolist() == want
    for number in range(len(source)):
        pair = source.pair(number, seed, number)
        assert pair == source.pair(number, seed, number)
        assert pair.gallery == want[number] != pair.query
        assert pair.person_id in pictures[pair.gallery]
        assert pair.person_id in pictures[pair.query]
        elsewhere = [
            n
            for n, ids in enumerate(pictures)
            if pair.person_id in ids and cameras[n] != cameras[pair.gallery]
        ]
        assert not elsewhere or pair.query in elsewhere


def test_the_share_of_absent_people_is_that_of_the_key():
    pictures = [[0, 1], [0, 1], [2], [2], [3, 0], [3]]
    source = PairSource(records(pictures), absent_fraction=0.25)
    absent = 0
    for position in range(4000):
        pair = source.pair(position % len(source), 7, position)
        assert pair.person_id in pictures[pair.query]
        absent += pair.person_id not in pictures[pair.gallery]
    # Five standard deviations of a binomial.
    assert abs(absent / 4000 - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    with pytest.raises(ConfigError, match="ABSENT_FRACTION 1"):
        PairSource(records(pictures), absent_fraction=1.0)
    with pytest.raises(ConfigError, match="MODE 'none'"):
        PairSource(records(pictures), mode="none")


def test_both_pictures_are_resized_and_flipped_with_their_boxes(tmp_path):
    """The people are coloured: red in the gallery picture and in the query's."""
    records = []
    for number, box in enumerate([(10, 20, 50, 80), (60, 10, 90, 90)]):
        pixels = np.zeros((100, 140, 3), np.uint8)
        x0, y0, x1, y1 = box
        pixels[y0:y1, x0:x1] = (250, 0, 0)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        person = {"bbox": box, "bbox_mode": 0, "category_id": 0, "person_id": 0, "iscrowd": 0}
        record = {"file_name": str(tmp_path / f"{number}.png"), "image_id": number}
        records.append({**record, "height": 100, "width": 140, "annotations": [person]})
    cfg = tiny_cfg("c4", *GUIDED, "INPUT.MIN_SIZE_TRAIN", (64, 96, 128), "SOLVER.IMS_PER_BATCH", 1)
    cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 0, 3
    seen = set()
    for _, (sample,) in zip(range(12), build_pair_train_loader(cfg, dataset=records)):
        boxes = (sample["instances"].gt_boxes.tensor[0], sample["query_boxes"][0])
        for image, box in zip((sample["image"], sample["query_image"]), boxes):
            inside = torch.zeros(image.shape[1:], dtype=torch.bool)
            x0, y0, x1, y1 = box.round().int().tolist()
            inside[y0:y1, x0:x1] = True
            red = image[2] > 125  # BGR
            assert (red == inside).float().mean() > 0.95
        sizes = [min(sample[key].shape[1:]) for key in ("image", "query_image")]
        sides = [bool(box[0] < 0.35 * sample["image"].shape[2]) for box in boxes]
        seen.add((sizes[0] == sizes[1], *sides))
    # Each picture by itself: of equal and of different sizes, flipped and not.
    assert len({x[0] for x in seen}) == 2 and len({x[1] for x in seen}) == 2


# ---------------------------------------------------------------------------------------- search


TEST_SET = "qeeps_test"
QUERIES = ((0, 0), (0, 1), (3, 2))


@pytest.fixture(scope="module")
def test_set(tmp_path_factory):
    """Four pictures, with three queries."""
    folder = tmp_path_factory.mktemp("qeeps")
    write_pictures(folder, len(PEOPLE))
    register_people(TEST_SET, folder)
    lines = []
    for n, k in QUERIES:
        person, box = PEOPLE[n][k]
        lines.append(f"{person} {' '.join(map(str, box))} {n}.png\n")
    (folder / "queries.txt").write_text("".join(lines))
    forget(TEST_SET)
    register_person_search_coco(
        TEST_SET, str(folder / f"{TEST_SET}.json"), str(folder), str(folder / "queries.txt")
    )
    yield TEST_SET
    forget(TEST_SET)


def search_cfg(*overrides):
    return tiny_cfg(
        "c4",
        *GUIDED,
        *("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 128, "DATALOADER.NUM_WORKERS", 0),
        *("TEST.PERSON_SEARCH.SCORE_THRESH", 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        *("TEST.PERSON_SEARCH.IOU_THRESH", 0.1, "TEST.PERSON_SEARCH.TABLE", False),
        *overrides,
    )


def results_file(folder):
    return json.loads((folder / "person_search_results.json").read_text())


@pytest.mark.parametrize("sample", [0, 2])
def test_a_network_that_ignores_the_query_is_rated_as_the_plain_evaluation_rates_it(
    test_set, tmp_path, sample
):
    cfg = search_cfg(
        *("TEST.PERSON_SEARCH.SAMPLE_QUERIES", sample, "TEST.PERSON_SEARCH.SAMPLE_PICTURES", 4),
        *("MODEL.QUERY_GUIDED.GATES.ENABLED", False, "MODEL.QUERY_GUIDED.RPN.ENABLED", False),
        *("MODEL.QUERY_GUIDED.SIMILARITY.RANK_BY", "cosine"),
    )
    network = build_model(cfg).eval()
    have = qeeps.query_guided_search(cfg, network, test_set, str(tmp_path / "guided"))
    evaluator = PersonSearchEvaluator(cfg, test_set, output_dir=str(tmp_path / "plain"))
    loader = build_person_search_test_loader(cfg, test_set)
    with torch.no_grad():
        for batch in loader:
            evaluator.process(batch, network(batch))
    want = evaluator.evaluate()
    assert have["person_search"]["mAP"] > 0
    if sample:
        assert have["person_search"]["queries"] == sample
    for name, value in want["person_search"].items():
        assert have["person_search"][name] == pytest.approx(value, abs=1e-9), name
    assert "detection" not in have
    ours, theirs = (results_file(tmp_path / kind) for kind in ("guided", "plain"))
    for a, b in zip(ours["queries"], theirs["queries"]):
        # Pictures run in batches here and alone there, which rounds differently.
        for m, n in zip(a["matches"], b["matches"]):
            assert m["image_id"] == n["image_id"]
            assert m["bbox"] == pytest.approx(n["bbox"], abs=1e-2)
        assert [m["similarity"] for m in a["matches"]] == pytest.approx(
            [m["similarity"] for m in b["matches"]], abs=1e-5
        )


def test_a_shortlist_of_nothing_is_the_plain_search_and_of_all_the_guided_one(test_set, tmp_path):
    cfg = search_cfg("DATASETS.TEST", (test_set,))
    torch.manual_seed(0)
    network = build_model(cfg).eval()
    plain_cfg = search_cfg("MODEL.META_ARCHITECTURE", "PersonSearchRCNN")
    plain = build_model(plain_cfg).eval()
    folders = [str(tmp_path / kind) for kind in ("plain", "guided")]
    evaluator = PersonSearchEvaluator(plain_cfg, test_set, output_dir=folders[0])
    with torch.no_grad():
        for batch in build_person_search_test_loader(plain_cfg, test_set):
            evaluator.process(batch, plain(batch))
    expected = {0: evaluator.evaluate()}
    expected[100] = qeeps.query_guided_search(cfg, network, test_set, folders[1])
    found = evaluate_shortlists(cfg, network, *folders, [0, 1, 100])
    for size, want in expected.items():
        for name, value in want["person_search"].items():
            have = found[size].results["person_search"][name]
            assert have == pytest.approx(value, abs=1e-9), (size, name)
    values = [found[size].results["person_search"]["mAP"] for size in (0, 1, 100)]
    assert len(set(values)) > 1


def test_what_a_query_found_is_kept_and_belongs_to_the_weights(test_set, tmp_path, monkeypatch):
    cfg = search_cfg()
    network = build_model(cfg).eval()
    searched = []
    search = type(network).search

    def count(self, query, batch):
        searched.extend(x["image_id"] for x in batch)
        return search(self, query, batch)

    def stop_after_one(self, query, batch):
        if len(searched) > 3:
            raise KeyboardInterrupt
        return count(self, query, batch)

    monkeypatch.setattr(type(network), "search", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        qeeps.query_guided_search(cfg, network, test_set, str(tmp_path))
    monkeypatch.setattr(type(network), "search", count)
    done = len(list((tmp_path / "query_guided").glob("*.npz")))
    assert 0 < done < len(QUERIES)
    searched.clear()
    first = qeeps.query_guided_search(cfg, network, test_set, str(tmp_path))
    assert len(searched) == 3 * (len(QUERIES) - done)
    searched.clear()
    # The config as a training's folder has it.
    read = type(cfg).load_cfg(cfg.dump())
    assert qeeps.query_guided_search(read, network, test_set, str(tmp_path)) == first
    assert not searched
    # A damaged file costs its query alone.
    file = sorted((tmp_path / "query_guided").glob("*.npz"))[0]
    file.write_bytes(file.read_bytes()[:40])
    assert qeeps.query_guided_search(cfg, network, test_set, str(tmp_path)) == first
    assert len(searched) == 3
    searched.clear()
    with torch.no_grad():
        network.roi_heads.similarity.linear.bias += 1
    qeeps.query_guided_search(cfg, network, test_set, str(tmp_path))
    assert len(searched) == 3 * len(QUERIES)


def test_ranks_share_the_queries_and_find_what_one_process_finds(test_set, monkeypatch):
    cfg = search_cfg()
    torch.manual_seed(0)
    network = build_model(cfg).eval()
    want = qeeps.query_guided_search(cfg, network, test_set)
    parts = []

    def gather(part, dst):
        parts.append(part)
        return parts if len(parts) == 2 else []

    monkeypatch.setattr("qeeps.search.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("qeeps.search.comm.synchronize", lambda: None)
    monkeypatch.setattr("qeeps.search.comm.gather", gather)
    for rank in (1, 0):
        monkeypatch.setattr("qeeps.search.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("qeeps.search.comm.is_main_process", lambda rank=rank: rank == 0)
        have = qeeps.query_guided_search(cfg, network, test_set)
        assert bool(have) == (rank == 0)
    assert [sorted(part) for part in parts] == [[1], [0, 2]]
    assert have == want


def test_the_batch_of_a_search_and_its_order_change_no_detection(test_set, tmp_path):
    files = []
    for batch in (1, 3):
        cfg = search_cfg("MODEL.QUERY_GUIDED.TEST_BATCH", batch)
        torch.manual_seed(0)
        network = build_model(cfg).eval()
        qeeps.query_guided_search(cfg, network, test_set, str(tmp_path / str(batch)))
        files.append(results_file(tmp_path / str(batch)))
    one, three = files
    for a, b in zip(one["queries"], three["queries"]):
        assert a["AP"] == b["AP"]
        assert [m["similarity"] for m in a["matches"]] == pytest.approx(
            [m["similarity"] for m in b["matches"]], abs=1e-4
        )


def test_a_similarity_of_a_plain_evaluation_is_refused(test_set):
    cfg = search_cfg("TEST.PERSON_SEARCH.SIMILARITY", "score_weighted")
    with pytest.raises(ConfigError, match="RANK_BY"):
        qeeps.query_guided_search(cfg, None, test_set)


@pytest.mark.parametrize("complete", [False, True])
def test_galleries_by_query_are_rated_as_together(complete):
    rng = np.random.default_rng(2)
    counts = [4, 0, 6]
    offsets = np.cumsum([0, *counts])
    images = np.concatenate([rng.permutation(7)[:n] for n in counts])
    boxes = np.full((len(images), 4), np.nan)
    boxes[[0, 2, 5, 8]] = rng.uniform(0, 50, (4, 4)).cumsum(axis=1)
    gallery = replace(Gallery.listed("G", offsets, images, boxes, num_images=8), complete=complete)
    truth = GroundTruth(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int))
    n = 40
    found = Detections(
        np.repeat(gallery.boxes, 10, axis=0) + rng.uniform(-2, 2, (n, 4)),
        np.ones(n),
        rng.integers(0, 8, n),
    )
    cosine = rng.uniform(-1, 1, (3, n))
    people = np.arange(3)
    own = np.full(3, 7)
    # Each query alone, from similarities; and all together, from embeddings that have them.
    vectors = np.concatenate([cosine, np.zeros((1, n))])
    scale = np.sqrt((vectors**2).sum(0)).max()
    vectors[-1] = np.sqrt(scale**2 - (vectors**2).sum(0))
    together = Detections(found.boxes, found.scores, found.image_index, vectors.T / scale)
    queries = Queries(np.eye(4)[:3], people, own)
    (want,) = rank_gallery(together, truth, queries, [GalleryProtocol(gallery)])
    annotations = Annotations(
        list(range(8)), np.ones(8, bool), truth, people, np.zeros((3, 4)), people, own, -np.ones(8)
    )
    alone = [Found(found.image_index, found.boxes, found.scores, row / scale) for row in cosine]
    have = evaluate_found(alone, annotations, gallery, Protocol())
    assert want.num_gt.tolist() == [2, 0, 2] and want.num_found.any()
    for query, entry in enumerate(have.rankings):
        if want.num_gt[query]:
            assert entry["AP"] == pytest.approx(100 * want.ap[query], abs=1e-9)
        assert entry["num_gt"] == want.num_gt[query]
        assert entry["num_found"] == want.num_found[query]
        assert (entry["first_hit_rank"] or 0) == want.first_hit_rank[query]


# ------------------------------------------------------------------------------------- end to end


def test_two_processes_train_on_pairs_search_and_resume_to_the_bit(test_set, tmp_path):
    plain = build(*SPLIT)
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    folder = Path(locate_split(TEST_SET).json_file).parent
    files = [str(folder / name) for name in (f"{TEST_SET}.json", ".", "queries.txt")]
    entries = [["own_train", *files[:2]], ["own_test", *files]]
    overrides = flat(
        {
            "DATASETS.PERSON_SEARCH_COCO": entries,
            "DATASETS.TRAIN": ("own_train",),
            "DATASETS.TEST": ("own_test",),
            "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.25,
            "MODEL.REID_HEAD.EMBEDDING_DIM": 8,
            "MODEL.REID_HEAD.EMBEDDING_NORM": "",
            "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0, 2.0, 3.0]],
            "MODEL.OIM.QUEUE_SIZE": 5,
            "MODEL.WEIGHTS": str(tmp_path / "plain.pth"),
            "INPUT.MIN_SIZE_TRAIN": (96,),
            "INPUT.MIN_SIZE_TEST": 96,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 4,
            "SOLVER.WARMUP_ITERS": 1,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "TEST.PERSON_SEARCH.TABLE": False,
        }
    )
    config = REPO / "projects/QEEPS/configs/generated/qeeps_r18w50_c4.yaml"
    states = []
    for name, options in (("whole", []), ("resumed", ["--resume"])):
        output = tmp_path / name
        if options:
            shutil.copytree(tmp_path / "whole", output)
            shutil.rmtree(output / "inference")
            for later in ("model_final.pth", "model_0000003.pth"):
                (output / later).unlink()
            (output / "last_checkpoint").write_text("model_0000001.pth")
        run_script(
            *("QEEPS", "train_net", "--config-file", config, "--num-gpus", 2, *options),
            *(*overrides, "OUTPUT_DIR", output),
            # New ranks import the script, and have its networks.
            start=forked.run if options else forked.new_python,
        )
        states.append(torch.load(output / "model_final.pth", weights_only=True))
        # Each rank searches with its own batch-norm statistics, as in Detectron2: no equal results.
        results = results_file(output / "inference" / "own_test")
        assert [q["query_id"] for q in results["queries"]] == [0, 1, 2]
    whole, resumed = states
    assert whole["model"].keys() == resumed["model"].keys()
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    log = (tmp_path / "whole" / "log.txt").read_text()
    for part in ("backbone.gates", "query_objectness", "roi_heads.similarity"):
        assert part in log  # as layers that start from their initial values
    trained = json.loads((tmp_path / "whole" / "metrics.json").read_text().splitlines()[0])
    assert {"loss_query_rpn", "loss_similarity", "loss_oim", "loss_rpn_cls"} < trained.keys()


@pytest.mark.e2e
def test_the_study_and_a_shortlist_of_its_networks(tmp_path, capsys):
    data = tmp_path / "data"
    generate_dataset(data, PRESETS["tiny"], seed=0, progress=False)
    small = flat(
        {
            "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 8,
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.MIN_SIZE_TEST": 64,
            "SOLVER.IMS_PER_BATCH": 2,
        }
    )
    out, seeds = tmp_path / "out", ["--seeds", 1]
    printed = run_script(
        *("QEEPS", "ablate", "--set", "generated", "--output", out, *seeds),
        *("--rows", "OIM", "QEEPS", "--iterations", 2, "--teacher-iterations", 2),
        *("--opts", *small, "--teacher-opts", *small),
        KD_SEARCH_GENERATED=str(data),
    )
    assert "[2/2] teacher" in printed and "QEEPS, seed 1" in printed
    study = read_study(out / "ablation.json")
    assert study.table_layout().base == "OIM"
    by_row = {run.row: run.metrics for run in study.runs}
    assert "all_mAP" in by_row["OIM"] and "all_mAP" not in by_row["QEEPS"]
    results = tmp_path / "shortlist.json"
    printed = run_script(
        *("QEEPS", "shortlist", "--plain", out / "OIM/seed1", "--query-guided"),
        *(out / "QEEPS/seed1", "--sizes", 0, 1, 1000, "--results", results),
        KD_SEARCH_GENERATED=str(data),
    )
    assert "| 1000 |" in printed
    by_size = {run.row: run for run in read_study(results).runs}
    assert list(by_size) == ["0", "1", "1000"] and {run.seed for run in by_size.values()} == {1}
    for row, size in (("OIM", "0"), ("QEEPS", "1000")):
        for name in ("mAP", "top1"):
            assert by_size[size].metrics[name] == pytest.approx(by_row[row][name], abs=1e-9)
    words = ["--plain", out / "OIM/seed1", "--query-guided", tmp_path, "--results", results]
    assert load_script("QEEPS", "shortlist").main(list(map(str, words))) == 2
    assert str(tmp_path) in capsys.readouterr().err


def flat(settings):
    return [str(x) for pair in settings.items() for x in pair]
