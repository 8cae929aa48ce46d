"""The terms of DKD on hand-made outputs, and whole steps with a re-ID teacher."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from crops_inputs import crops_input
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image
from tiny import NUM_IDS, tiny_cfg, training_input
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from kd_search.data import PersonSearchDatasetMapper
from kd_search.distillation import Distiller
from kd_search.distillation.methods.dkd import (
    CropSampler,
    IdentityProbabilityTerm,
    PairRelationTerm,
    ReIDTeacher,
    TripletRelationTerm,
)
from kd_search.outputs import CROP_PARTS, CropOutputs, Crops, IdentitySpec, ModelOutputs, ModelSpec


def spec(embedding_dim=8, num_identities=0):
    crops = IdentitySpec(embedding_dim, num_identities)
    return ModelSpec({}, 1, parts=CROP_PARTS, crops=crops)


def outputs(seed, ids=(0, 1, -1, 0), dim=8, shifts=False):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(ids * (1 + shifts), dtype=torch.int64)
    shifted = torch.arange(len(ids)) >= len(ids) // (1 + shifts)
    embeddings = torch.randn(len(ids), dim, generator=generator)
    logits = torch.randn(len(ids), 5, generator=generator)
    return ModelOutputs(crops=CropOutputs(Crops([], ids, shifted), embeddings, logits))


def with_embeddings(given, embeddings):
    return replace(given, crops=replace(given.crops, embeddings=embeddings))


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
def test_probabilities_of_labelled_people_alone(direction):
    student, teacher = outputs(0), outputs(1)
    expected = 0.0
    for row in (0, 1, 3):
        own = student.crops.logits[row].double().softmax(0)
        given = teacher.crops.logits[row].double().softmax(0)
        p, q = (own, given) if direction == "student_teacher" else (given, own)
        expected += float((p * (p / q).log()).sum()) / 3
    term = IdentityProbabilityTerm(direction=direction, loss_weight=2.0)
    found = term(student, teacher)["loss_probability"]
    assert float(found) == pytest.approx(2 * expected, rel=1e-5)


def test_shifted_boxes_add_a_second_sum_of_the_same_weight():
    student, teacher = outputs(0, shifts=True), outputs(1, shifts=True)
    own = student.crops.logits.double().log_softmax(1)
    given = teacher.crops.logits.double().log_softmax(1)
    kl = (own.exp() * (own - given)).sum(dim=1)
    expected = float(kl[[0, 1, 3]].mean() + kl[[4, 5, 7]].mean())
    found = IdentityProbabilityTerm()(student, teacher)["loss_probability"]
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ids", [(-1, -1), ()])
@pytest.mark.parametrize("term", [IdentityProbabilityTerm, PairRelationTerm, TripletRelationTerm])
def test_no_one_to_compare_is_zero_with_a_graph(ids, term):
    student, teacher = outputs(0, ids), outputs(1, ids)
    student.crops.embeddings.requires_grad_()
    student.crops.logits.requires_grad_()
    (loss,) = term()(student, teacher).values()
    loss.backward()
    if not ids or term is IdentityProbabilityTerm:
        assert loss == 0
    assert math.isfinite(float(loss.detach()))


@pytest.mark.parametrize("normalize", [True, False])
def test_pair_relations_do_not_mind_other_sizes(normalize):
    student, teacher = outputs(0), outputs(1, dim=3)
    matrices = []
    for given in (student, teacher):
        f = given.crops.embeddings.double()
        f = F.normalize(f, dim=1) if normalize else f
        matrices.append(F.normalize(f @ f.T, dim=1))
    expected = float((matrices[0] - matrices[1]).square().sum()) / 16
    term = PairRelationTerm(normalize=normalize)
    found = term(student, teacher)["loss_pair_relation"]
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert term(student, copy.deepcopy(student))["loss_pair_relation"] == 0


def test_pairs_of_a_student_with_the_directions_of_its_teacher_cost_nothing():
    """Only without normalisation do the lengths of the teacher's embeddings count."""
    teacher, other = outputs(1), outputs(0)
    lengths = torch.tensor([[1.0], [1.5], [0.7], [2.0]])
    teacher = with_embeddings(teacher, teacher.crops.embeddings * lengths)
    student, other = (
        with_embeddings(x, F.normalize(x.crops.embeddings, dim=1)) for x in (teacher, other)
    )
    terms = [
        PairRelationTerm(**PairRelationTerm.from_config(cfg))
        for cfg in (tiny_cfg("fpn"), tiny_cfg("fpn", "DISTILLATION.DKD.NORMALIZE_PAIRS", False))
    ]
    same, raw_same = (float(t(student, teacher)["loss_pair_relation"]) for t in terms)
    random, raw_random = (float(t(other, teacher)["loss_pair_relation"]) for t in terms)
    assert same < 1e-12 * random and raw_same > 0.01 * raw_random


@pytest.mark.parametrize("literal", [False, True])
def test_triplet_relations_against_the_equation(literal):
    student, teacher = outputs(0, (0, 1, 2, 0)), outputs(1, (0, 1, 2, 0))
    own, given = (F.normalize(k.crops.embeddings.double(), dim=1) for k in (student, teacher))
    ids, expected = [0, 1, 2, 0], 0.0
    for i in range(4):
        others = [j for j in range(4) if j != i and (literal or ids[j] != ids[i])]
        nearest = min(float((own[i] - given[j]).norm()) for j in others)
        expected += max(0.0, 0.3 + float((own[i] - given[i]).norm()) - nearest) / 4
    found = TripletRelationTerm(literal=literal)(student, teacher)["loss_triplet_relation"]
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_student_who_is_its_teacher():
    """Nothing to learn but the margin, which the teacher itself does not keep."""
    ids = (0, 1, 2, 0)
    teacher = outputs(1, ids)
    student = copy.deepcopy(teacher)
    assert IdentityProbabilityTerm()(student, teacher)["loss_probability"] == 0
    assert PairRelationTerm()(student, teacher)["loss_pair_relation"] == 0
    assert TripletRelationTerm(margin=0.0)(student, teacher)["loss_triplet_relation"] == 0
    unit, expected = F.normalize(teacher.crops.embeddings.double(), dim=1), 0.0
    for i in range(4):
        nearest = min(float((unit[i] - unit[j]).norm()) for j in range(4) if ids[j] != ids[i])
        expected += max(0.0, 1.5 - nearest) / 4
    found = TripletRelationTerm(margin=1.5)(student, teacher)["loss_triplet_relation"]
    assert float(found) == pytest.approx(expected, rel=1e-5) and expected > 0


def test_misfits_are_refused():
    term = IdentityProbabilityTerm()
    with pytest.raises(ValueError, match="IdentityProbabilityTerm.*crops.logits.*HEAD.CLASSIFIER"):
        distiller(False, "MODEL.OIM.ENABLED", False)
    with pytest.raises(ValueError, match="IdentityProbabilityTerm.* 4 .* 5"):
        term.setup(spec(num_identities=5), spec(num_identities=4))
    with pytest.raises(ValueError, match="TripletRelationTerm.* 8, .* 32: .*DKD.PROJECTION"):
        TripletRelationTerm().setup(spec(), spec(embedding_dim=32))
    projecting = TripletRelationTerm(projection=True)
    projecting.setup(spec(), spec(embedding_dim=32))
    teacher = outputs(1, dim=32)
    projecting(outputs(0), teacher)["loss_triplet_relation"].backward()
    assert projecting.projection.weight.grad.abs().sum() > 0


class TinyReID(nn.Module):
    """A re-ID network of two layers."""

    def __init__(self, num_ids=NUM_IDS, dim=8):
        super().__init__()
        self.embed = nn.Linear(3 * 8 * 4, dim)
        self.classifier = nn.Linear(dim, num_ids)
        self.seen = []

    device = torch.device("cpu")

    def spec(self):
        return spec(num_identities=self.classifier.out_features)

    def crop_features(self, crops):
        self.seen.append(crops)
        return self.embed(F.adaptive_avg_pool2d(crops / 255, (8, 4)).flatten(1))

    def classify(self, features):
        return features, self.classifier(features)


def distiller(shifts, *overrides):
    torch.manual_seed(0)
    student = build_model(tiny_cfg("fpn", *overrides))
    terms = nn.ModuleDict(
        {
            "IdentityProbabilityTerm": IdentityProbabilityTerm(),
            "PairRelationTerm": PairRelationTerm(),
            "TripletRelationTerm": TripletRelationTerm(),
        }
    )
    sampler = CropSampler(shifts=shifts, input_size=(64, 32), padding=10.0, limit=20.0)
    teacher = ReIDTeacher(TinyReID(), input_size=(64, 32), sampler=sampler)
    return Distiller(student=student, terms=terms, companions={"ReIDTeacher": teacher})


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("classifier", [False, True])
def test_a_step_with_a_re_id_teacher_trains_the_student_alone(tmp_path, shifts, classifier):
    model = distiller(shifts, "MODEL.REID_HEAD.CLASSIFIER", classifier).train()
    batch = [crops_input(tmp_path, (0, -1, 3)), crops_input(tmp_path, ())]
    with EventStorage():
        losses = model(batch)
    assert ("loss_identity" in losses) == classifier
    assert losses["loss_probability"] > 0 and losses["loss_pair_relation"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    teacher = model.companions["ReIDTeacher"].model
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    # Three people, each once more with feature-level augmentation.
    assert [len(crops) for crops in teacher.seen] == [3 * (1 + shifts)]
    assert not any("companions" in name for name in model.state_dict())


def test_moving_boxes_does_not_change_what_the_student_samples(tmp_path):
    """Its own losses of a step are those without a teacher; the moves differ from step to step."""
    model = distiller(True).train()
    plain = copy.deepcopy(model.student)
    batch = [crops_input(tmp_path, (0, -1, 3))]
    torch.manual_seed(5)
    with EventStorage():
        expected = [plain(batch) for _ in range(2)]
    torch.manual_seed(5)
    with EventStorage():
        found = [model(batch) for _ in range(2)]
    for theirs, ours in zip(expected, found):
        assert len(theirs) == 5
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    first, second = model.companions["ReIDTeacher"].model.seen
    assert torch.equal(first[:3], second[:3]) and not torch.equal(first[3:], second[3:])


def test_images_without_people_cost_nothing(tmp_path):
    model = distiller(False).train()
    with EventStorage():
        losses = model([crops_input(tmp_path, ())])
    for name in ("loss_probability", "loss_pair_relation", "loss_triplet_relation"):
        assert losses[name] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_unlabelled_people_have_neither_probability_nor_triplet_loss(tmp_path):
    """Exactly zero, of whole steps; pair-wise relations need no identity."""
    model = distiller(True).train()
    with EventStorage():
        losses = model([crops_input(tmp_path, (-1, -1)), crops_input(tmp_path, ())])
    assert losses["loss_probability"] == 0 and losses["loss_triplet_relation"] == 0
    assert losses["loss_pair_relation"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def marked_input(folder, number, transforms):
    """A person of a 240x320 image with a bright marker, at another place of each image's box."""
    box = np.array([120, 60, 180, 210])
    x, y = box[:2] + np.array([[6, 105], [40, 20], [20, 130], [50, 75]][number])
    image = np.zeros((240, 320, 3), dtype=np.uint8)
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
    path = folder / f"marked{number}.png"
    Image.fromarray(image).save(path)
    person = {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {
        **{"file_name": str(path), "image_id": number, "height": 240, "width": 320},
        "annotations": [{**person, "person_id": number}],
    }
    return PersonSearchDatasetMapper(True, augmentations=transforms, with_original=True)(record)


def marker(crops):
    """(P, 2): middle of the bright pixels of (P, 3, H, W) crops, fractions of width and height."""
    weight = crops.sum(dim=1)
    rows, columns = torch.meshgrid(
        *(torch.arange(n) + 0.5 for n in weight.shape[1:]), indexing="ij"
    )
    total = weight.sum(dim=(1, 2))
    x, y = ((weight * c).sum(dim=(1, 2)) / total / n for c, n in ((columns, 64), (rows, 128)))
    return torch.stack([x, y], dim=1)


@pytest.mark.parametrize("shifts", [False, True])
def test_student_and_teacher_embed_the_same_regions(tmp_path, shifts):
    """A marker shows it: image after image, however each was augmented, wherever its box moved."""
    augmentations = [
        [],
        [T.HFlipTransform(320)],
        [T.CropTransform(60, 20, 220, 200), T.ResizeTransform(200, 220, 300, 400)],
        [T.CropTransform(60, 20, 200, 210), T.HFlipTransform(200)],
    ]
    batch = [marked_input(tmp_path, i, list(t)) for i, t in enumerate(augmentations)]
    model = distiller(shifts)
    size = (128, 64)
    # Boxes move by up to a tenth of their size to either side.
    sampler = CropSampler(shifts=shifts, input_size=size, padding=6.4, limit=100.0)
    teacher = model.companions["ReIDTeacher"]
    teacher.sampler, teacher.input_size = sampler, size
    embedded = []
    embed = model.student.embed_crops
    model.student.embed_crops = lambda given, crops: embedded.append(crops) or embed(given, crops)
    model.train()
    farthest = 0.0
    for seed in range(4):
        torch.manual_seed(seed)
        with EventStorage():
            model(batch)
        regions, shown = embedded[-1], teacher.model.seen[-1]
        assert regions.person_ids.tolist() == [i for i in range(4) for _ in range(1 + shifts)]
        # What the student's region shows, at the size of the teacher's crop.
        seen = [
            roi_align(x["image"][None].float(), [boxes], size, 1.0, 4, True)
            for x, boxes in zip(batch, regions.boxes)
        ]
        ours, theirs = marker(torch.cat(seen)), marker(shown)
        # The teacher's crop is of whole pixels: half of one is 1/120 of the box's width.
        assert (ours - theirs).abs().max() < 0.015
        if shifts:
            farthest = max(farthest, float((theirs[::2] - theirs[1::2]).abs().max()))
        assert len({tuple((10 * m).round().tolist()) for m in theirs[:: 1 + shifts]}) == 4
    # The moved boxes did move, by more than the tolerance.
    assert not shifts or farthest > 0.06


def test_separate_res5_serves_the_re_id_branch_alone():
    shared, apart = (
        build_model(tiny_cfg("c4", "MODEL.REID_HEAD.SEPARATE_RES5", separate))
        for separate in (False, True)
    )
    assert shared.roi_heads.reid_res5 is None
    own = apart.roi_heads.reid_res5
    assert own is not apart.roi_heads.res5
    assert [p.shape for p in own.parameters()] == [
        p.shape for p in apart.roi_heads.res5.parameters()
    ]
    with EventStorage():
        losses = apart([training_input()])
    losses["loss_oim"].backward(retain_graph=True)
    assert all(p.grad is not None for p in own.parameters())
    assert all(p.grad is None for p in apart.roi_heads.res5.parameters())
