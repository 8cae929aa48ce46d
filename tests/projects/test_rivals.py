"""DDPS, PKD and CrossKD: losses against slow references, terms alone and with all others."""

import copy
import json
import math

import pytest
import rivals  # noqa: F401  registers keys, terms and companions
import torch
from fvcore.nn import giou_loss
from rivals import losses
from rivals.cross_head import split_layers
from rivals.ddps import people_masks
from tiny import REPO, detection_input, tiny_cfg, tiny_detector_cfg, training_input
from tiny_distiller import distiller_of, losses_of, save_teacher
from tiny_retinanet import object_input, tiny_retinanet_cfg
from torch import nn

from kd_search.config import ConfigError
from kd_search.distillation import DISTILLATION_TERM_REGISTRY
from kd_search.synthetic import PRESETS, generate_dataset
from tests.projects.project_files import load_script, run_script
from tests.projects.registrations import only_here

ablate = load_script("Rivals", "ablate")
registered = only_here("rivals")

DDPS = ["DisaggregatedFeatureTerm", "DecoupledLogitTerm", "CorrelationTerm"]
TERMS = [*DDPS, "PearsonTerm", "CrossHeadTerm"]


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------------- losses


def test_pearson_loss_is_one_minus_the_correlation_of_each_channel():
    ours, theirs = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    expected = 0.0
    for channel in range(3):
        pairs = [
            (float(ours[n, channel, i, j]), float(theirs[n, channel, i, j]))
            for n in range(2)
            for i in range(4)
            for j in range(5)
        ]
        mean_a, mean_b = (math.fsum(p[k] for p in pairs) / len(pairs) for k in (0, 1))
        cov = math.fsum((a - mean_a) * (b - mean_b) for a, b in pairs)
        var_a = math.fsum((a - mean_a) ** 2 for a, _ in pairs)
        var_b = math.fsum((b - mean_b) ** 2 for _, b in pairs)
        expected += (1 - cov / math.sqrt(var_a * var_b)) / 3
    assert float(losses.pearson_loss(ours, theirs)) == pytest.approx(expected, rel=1e-12)
    # Any scale and offset of a channel makes no difference.
    scaled = theirs * torch.tensor([2.0, 0.1, 30.0])[:, None, None] + 7
    assert float(losses.pearson_loss(ours, scaled)) == pytest.approx(expected, rel=1e-9)
    assert float(losses.pearson_loss(ours, ours)) == pytest.approx(0.0, abs=1e-12)


def test_a_constant_channel_has_no_correlation_and_a_finite_gradient():
    ours = noise(1, 2, 3, 3)
    ours[:, 0] = 4.0
    ours.requires_grad_()
    loss = losses.pearson_loss(ours, noise(1, 2, 3, 3, seed=1))
    loss.backward()
    assert bool(ours.grad.isfinite().all()) and loss.item() > 0.5
    empty = losses.pearson_loss(
        torch.zeros(0, 2, 3, 3, requires_grad=True), torch.zeros(0, 2, 3, 3)
    )
    assert float(empty) == 0.0 and empty.requires_grad
    with pytest.raises(ValueError, match="one shape"):
        losses.pearson_loss(noise(1, 2, 3, 3), noise(1, 1, 3, 3))


def softmax(row):
    top = max(row)
    exps = [math.exp(x - top) for x in row]
    return [x / math.fsum(exps) for x in exps]


def test_decoupled_logits_by_hand():
    ours, theirs, classes = noise(4, 5) * 3, noise(4, 5, seed=1) * 3, torch.tensor([0, 4, 2, 2])
    found = losses.decoupled_logits(ours, theirs, classes, 1.5, 0.5, 4.0)
    for row, own in enumerate(classes.tolist()):
        p, q = (softmax([float(x) / 4 for x in y[row]]) for y in (ours, theirs))
        target = q[own] * math.log(q[own] / p[own])
        target += (1 - q[own]) * math.log((1 - q[own]) / (1 - p[own]))
        others = 0.0
        for c in range(5):
            if c != own:
                a, b = p[c] / (1 - p[own]), q[c] / (1 - q[own])
                others += b * math.log(b / a)
        expected = (1.5 * target + 0.5 * others) * 16
        assert float(found[row]) == pytest.approx(expected, rel=1e-10)


def test_decoupled_logits_of_two_classes_have_no_others_and_bear_certainty():
    ours, theirs = noise(3, 2), noise(3, 2, seed=1)
    classes = torch.tensor([0, 1, 1])
    alone = losses.decoupled_logits(ours, theirs, classes, 1.0, 0.0, 4.0)
    assert torch.equal(losses.decoupled_logits(ours, theirs, classes, 1.0, 9.0, 4.0), alone)
    sure = torch.tensor([[400.0, -400.0]], dtype=torch.float64, requires_grad=True)
    loss = losses.decoupled_logits(sure, -sure, torch.tensor([0]), 1.0, 1.0, 1.0).sum()
    loss.backward()
    assert bool(loss.isfinite()) and bool(sure.grad.isfinite().all())
    assert len(losses.decoupled_logits(ours[:0], theirs[:0], classes[:0], 1, 1, 4.0)) == 0


def test_correlation_loss_by_hand():
    ours, theirs = noise(4, 3), noise(4, 6, seed=1)

    def cosine(x, i, j):
        dot = math.fsum(float(a * b) for a, b in zip(x[i], x[j]))
        return dot / float(x[i].norm() * x[j].norm())

    expected = math.fsum(
        (cosine(ours, i, j) - cosine(theirs, i, j)) ** 2 for i in range(4) for j in range(4)
    )
    assert float(losses.correlation_loss(ours, theirs)) == pytest.approx(expected, rel=1e-10)
    assert float(losses.correlation_loss(ours, 3 * ours)) == pytest.approx(0.0, abs=1e-20)
    assert float(losses.correlation_loss(ours[:0], theirs[:0])) == 0.0


def test_feature_losses_by_hand():
    ours, theirs = noise(2, 3, 2, 4), noise(2, 3, 2, 4, seed=1)
    people, background = noise(2, 2, 4, seed=2).abs(), noise(2, 2, 4, seed=3).abs()
    places, channels, other_places, other_channels = {}, {}, {}, {}
    for x, by_place, by_channel in (
        (theirs, places, channels),
        (ours, other_places, other_channels),
    ):
        for n in range(2):
            cells = [(i, j) for i in range(2) for j in range(4)]
            sizes = [math.fsum(abs(float(x[n, c, i, j])) for c in range(3)) / 3 for i, j in cells]
            for cell, value in zip(cells, softmax([s / 0.5 for s in sizes])):
                by_place[n, cell] = 8 * value
            sizes = [math.fsum(abs(float(v)) for v in x[n, c].flatten()) / 8 for c in range(3)]
            for c, value in enumerate(softmax([s / 0.5 for s in sizes])):
                by_channel[n, c] = 3 * value
    expected = [0.0, 0.0]
    for n, c, i, j in [
        (n, c, i, j) for n in (0, 1) for c in range(3) for i in (0, 1) for j in range(4)
    ]:
        square = float(ours[n, c, i, j] - theirs[n, c, i, j]) ** 2
        weight = places[n, (i, j)] * channels[n, c]
        expected[0] += square * weight * float(people[n, i, j]) / 2
        expected[1] += square * weight * float(background[n, i, j]) / 2
    distance = math.fsum(abs(places[k] - other_places[k]) for k in places)
    distance += math.fsum(abs(channels[k] - other_channels[k]) for k in channels)
    found = losses.region_feature_loss(ours, theirs, people, background, 0.5)
    assert [float(x) for x in found] == pytest.approx([*expected, distance / 2], rel=1e-10)


def test_masks_share_each_box_and_the_background_out_by_hand():
    x = detection_input((0,))
    # Cells 1 to 2 across and 0 to 2 down: 6 of 48 cells of a map of stride 16.
    x["instances"].gt_boxes.tensor = torch.tensor([[17.0, 0.0, 40.0, 48.0]])
    people, background = people_masks([x["instances"]], torch.zeros(1, 2, 6, 8), 16)
    assert float(people.sum()) == pytest.approx(1.0) and float(background.sum()) == pytest.approx(1)
    assert people[0, 0, 1] == pytest.approx(1 / 6) and background[0, 5, 7] == pytest.approx(1 / 42)
    assert not bool((people * background).any())
    nobody, everywhere = people_masks([x["instances"][:0]], torch.zeros(1, 2, 6, 8), 16)
    assert not bool(nobody.any()) and float(everywhere.sum()) == pytest.approx(1.0)


def test_quality_focal_by_hand():
    ours, theirs = noise(7) * 3, noise(7, seed=1) * 3
    for a, b, found in zip(ours, theirs, losses.quality_focal(ours, theirs, 2.0)):
        p, q = (1 / (1 + math.exp(-float(x))) for x in (a, b))
        entropy = -(q * math.log(p) + (1 - q) * math.log(1 - p))
        assert float(found) == pytest.approx((q - p) ** 2 * entropy, rel=1e-10)


@pytest.mark.parametrize("name", ["pearson", "logits", "correlation", "features", "focal"])
def test_gradients_are_those_of_the_numbers_and_the_students_alone(name):
    maps, rows, classes = (1, 2, 3, 3), (3, 4), torch.tensor([0, 3, 1])
    masks = noise(1, 3, 3, seed=2).abs()
    function, shape = {
        "pearson": (losses.pearson_loss, maps),
        "logits": (lambda a, b: losses.decoupled_logits(a, b, classes, 1, 0.5, 4.0).sum(), rows),
        "correlation": (losses.correlation_loss, rows),
        "features": (
            lambda a, b: sum(losses.region_feature_loss(a, b, masks, masks, 0.5)),
            maps,
        ),
        "focal": (lambda a, b: losses.quality_focal(a, b, 2.0).sum(), rows),
    }[name]
    ours, theirs = noise(*shape).requires_grad_(), noise(*shape, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, theirs.detach()), ours)
    function(ours, theirs).backward()
    assert theirs.grad is None and ours.grad is not None


# -------------------------------------------------------------------------------------- terms


def search_distiller(folder, terms, *overrides, channels=16):
    teacher = save_teacher(folder, tiny_cfg("fpn", "MODEL.FPN.OUT_CHANNELS", channels))
    return distiller_of("PersonSearchRCNN", *teacher, *overrides, terms=terms, base=tiny_cfg)


@pytest.mark.parametrize("channels", [16, 24])
def test_all_terms_together_teach_the_student_alone(tmp_path, channels):
    model = search_distiller(tmp_path, TERMS, channels=channels)
    found = losses_of(model, [training_input(), training_input((1, 1), seed=1)])
    kinds = ("people", "background", "attention", "context", "logits", "correlation")
    names = {*(f"loss_ddps_{kind}" for kind in kinds), "loss_pkd"}
    names |= {"loss_cross_classes", "loss_cross_boxes"}
    assert names <= found.keys()
    assert all(bool(loss.isfinite()) and loss.requires_grad for loss in found.values())
    sum(found[name] for name in names).backward()
    assert model.student.backbone.fpn_output2.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.model.parameters())
    # Every layer of terms and companions is trained, as processes side by side require.
    for part in (model.terms, model.companions):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
    assert not any(name.startswith("teacher") for name in model.state_dict())
    assert not any("TeacherHead.teacher" in name for name in model.state_dict())
    has_adapters = any("adapters" in name for name in model.state_dict())
    assert has_adapters == (channels != 16)


def test_every_term_stands_in_one_list_with_those_of_other_papers(tmp_path):
    others = ["HintTerm", "RegionRegressionTerm", "AnchorRegressionTerm", "WeightedFeatureTerm"]
    known = [name for name, _ in DISTILLATION_TERM_REGISTRY]
    assert set(TERMS) <= set(known) and set(others) <= set(known)
    model = search_distiller(tmp_path, [*others, *TERMS])
    found = losses_of(model, [training_input()])
    assert {"loss_hint", "loss_pkd", "loss_ddps_people"} <= found.keys()


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_and_without_people(tmp_path, term):
    model = search_distiller(tmp_path, [term])
    for people in ((), (0,)):
        found = losses_of(model, [training_input(people)])
        assert all(bool(loss.isfinite()) and loss.requires_grad for loss in found.values())


def same_network(model):
    """The teacher gets the weights of the student."""
    model.teacher.model.load_state_dict(copy.deepcopy(model.student.state_dict()), strict=False)
    for module in model.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the statistics are the teacher's


def extras_of(model, batch):
    """Outputs of the student and of the teacher, with those of the companions."""
    seen = []
    term = next(iter(model.terms.values()))
    term.register_forward_pre_hook(lambda _, outputs: seen.append(outputs))
    losses_of(model, batch)
    return seen[0]


@pytest.mark.parametrize("kind", ["rpn", "retinanet"])
def test_the_teachers_head_on_features_of_the_same_network_gives_its_own_predictions(
    tmp_path, kind
):
    if kind == "rpn":
        model = search_distiller(tmp_path, ["CrossHeadTerm"])
        batch = [training_input()]
    else:
        base = lambda: tiny_retinanet_cfg("MODEL.RETINANET.NUM_CONVS", 4)  # noqa: E731
        teacher = save_teacher(tmp_path, base())
        model = distiller_of("RetinaNet", *teacher, terms=["CrossHeadTerm"], base=base)
        batch = [object_input()]
    same_network(model)
    student, teacher = extras_of(model, batch)
    logits, deltas = student.extras["TeacherHead"]
    for found, own in ((logits, student.anchors.logits), (deltas, student.anchors.deltas)):
        assert len(found) == len(own)
        for a, b in zip(found, own):
            torch.testing.assert_close(a, b)
    for a, b in zip(logits, teacher.anchors.logits):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_cross_head_losses_are_sums_over_their_anchors(tmp_path):
    model = search_distiller(tmp_path, ["CrossHeadTerm"])
    term = model.terms["CrossHeadTerm"]
    student, teacher = extras_of(model, [training_input()])
    found = term(student, teacher)
    labels, normalizer = student.anchors.targets.labels, student.anchors.targets.normalizer
    logits, deltas = (torch.cat(x, dim=1) for x in student.extras["TeacherHead"])
    theirs = torch.cat(teacher.anchors.logits, dim=1)
    classes = boxes = 0.0
    anchors = torch.cat(student.anchors.boxes)
    their_deltas = torch.cat(teacher.anchors.deltas, dim=1)
    for place in (labels[0] >= 0).nonzero().flatten().tolist():
        classes += losses.quality_focal(logits[0, place], theirs[0, place], 1.0)
        if labels[0, place] == 1:
            a, b = (
                term.transform.apply_deltas(x[0, place][None], anchors[place][None])
                for x in (deltas, their_deltas)
            )
            boxes += giou_loss(a, b, reduction="sum")
    torch.testing.assert_close(found["loss_cross_classes"], classes / normalizer)
    torch.testing.assert_close(found["loss_cross_boxes"], boxes / normalizer)


def test_correlations_take_one_box_of_each_person(tmp_path):
    model = search_distiller(tmp_path, ["CorrelationTerm"])
    term = model.terms["CorrelationTerm"]
    student, teacher = extras_of(model, [training_input((0, 1, 2))])
    number = len(student.identities.embeddings)
    assert number > 3  # several regions of each of three people
    # With a threshold of 1 every region stays, with 0.5 about one of each person.
    everybody = losses.correlation_loss(
        student.identities.embeddings, teacher.identities.embeddings
    )
    term.nms = 1.0
    torch.testing.assert_close(term(student, teacher)["loss_ddps_correlation"], 0.01 * everybody)
    term.nms = 0.3
    assert float(term(student, teacher)["loss_ddps_correlation"]) < 0.01 * float(everybody)


def test_layers_are_split_after_a_number_of_convolutions():
    subnet = nn.Sequential(*(m for _ in range(3) for m in (nn.Conv2d(2, 2, 1), nn.ReLU())))
    x = torch.randn(1, 2, 3, 3)
    for layers in range(4):
        first, rest = split_layers(subnet, layers)
        assert len(first) == 2 * layers and torch.equal(rest(first(x)), subnet(x))
    with pytest.raises(ConfigError, match="STUDENT_LAYERS 4: the head has 3"):
        split_layers(subnet, 4)


@pytest.mark.parametrize(
    "term, overrides, key",
    [
        ("PearsonTerm", ("DISTILLATION.PKD.FEATURES", ["p9"]), "DISTILLATION.PKD.FEATURES"),
        (DDPS[0], ("DISTILLATION.DDPS.FEATURES", ["p9"]), "DISTILLATION.DDPS.FEATURES"),
        (DDPS[1], ("DISTILLATION.DDPS.TEMPERATURE", 0.0), "DISTILLATION.DDPS.TEMPERATURE"),
        (
            "CrossHeadTerm",
            ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
            "CrossHeadTerm requires the same anchors",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, term, overrides, key):
    with pytest.raises(ConfigError) as error:
        search_distiller(tmp_path, [term], *overrides)
    assert key in str(error.value) and "\n" not in str(error.value)


def test_detectors_without_identities_take_all_but_the_correlations(tmp_path):
    teacher = save_teacher(tmp_path, tiny_detector_cfg())
    terms = [term for term in TERMS if term != "CorrelationTerm"]
    model = distiller_of("GeneralizedRCNN", *teacher, terms=terms)
    found = losses_of(model, [detection_input()])
    assert found["loss_ddps_logits"] > 0
    with pytest.raises(ValueError, match="CorrelationTerm"):
        distiller_of("GeneralizedRCNN", *teacher, terms=TERMS)


# -------------------------------------------------------------------------------------- study


def test_rows_and_runs(tmp_path, monkeypatch):
    generate_dataset(tmp_path / "data", PRESETS["tiny"], seed=0, progress=False)
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(tmp_path / "data"))
    args = ablate.parse_args(["--output", str(tmp_path), "--seeds", "1"])
    study = ablate.make_study(args)
    assert [row.name for row in study.rows if row.main] == ["none", "PKD", "DDPS"]
    run = study.runs["DDPS", 1]
    assert list(run.config.DISTILLATION.TERMS) == DDPS
    assert run.command()[run.command().index("--import") + 1] == "rivals"


@pytest.mark.e2e
def test_rows_from_nothing(tmp_path):
    data = tmp_path / "data"
    generate_dataset(data, PRESETS["tiny"], seed=0, progress=False)
    options = ["--output", tmp_path / "out", "--rows", "none", "DDPS", "CrossKD", "--seeds", 1]
    options += ["--iterations", 2, "--teacher-iterations", 2]
    options += ["--opts", "SOLVER.IMS_PER_BATCH", 2, "--teacher-opts", "SOLVER.IMS_PER_BATCH", 2]
    options += ["--results", tmp_path / "results.json"]
    run_script("Rivals", "ablate", *options, KD_SEARCH_GENERATED=str(data))
    content = json.loads((tmp_path / "results.json").read_text())
    assert [run["row"] for run in content["runs"]] == ["none", "CrossKD", "DDPS"]
    assert content["protocol"]["recorded"] <= content["runs"][0]["started"]
    assert content["runs"][0]["per_query"]["mAP"]["ap"]
    lines = (tmp_path / "out" / "DDPS" / "seed1" / "metrics.json").read_text()
    assert "loss_ddps_people" in lines and "loss_ddps_correlation" in lines
