"""Whole steps with prototypes: every student, and the terms beside every other term there is."""

import pytest
import torch
from crops_inputs import crops_input
from detectron2.modeling import build_model
from tiny import NUM_IDS, detection_input, tiny_cfg, tiny_detector_cfg, training_input
from tiny_distiller import distiller_of, losses_of, save_teacher
from tiny_reid import reid_cfg
from tiny_retinanet import object_input, tiny_retinanet_cfg
from tiny_table import write_table

from kd_search.distillation import DISTILLATION_TERM_REGISTRY

NODE = "DISTILLATION.GLOBAL_KNOWLEDGE"
LOSSES = {
    "GlobalKnowledgeTerm": {"loss_global_knowledge"},
    "WeightedFeatureTerm": {"loss_feature_foreground", "loss_feature_background"},
    "WeightedSoftLabelTerm": {"loss_weighted_soft"},
}
OURS = sorted(LOSSES)
#: Names of the losses of all other terms.
OTHERS = {
    "AnchorClassTerm": {"loss_anchor_soft"},
    "AnchorRegressionTerm": {"loss_anchor_bounded"},
    "DistancePreservationTerm": {"loss_distance_preservation"},
    "HintTerm": {"loss_hint"},
    "IDTableTerm": {"loss_id_table"},
    "IdentityProbabilityTerm": {"loss_probability"},
    "PairRelationTerm": {"loss_pair_relation"},
    "RegionClassTerm": {"loss_region_soft"},
    "RegionRegressionTerm": {"loss_region_bounded"},
    "TripletRelationTerm": {"loss_triplet_relation"},
    "ViewLogitsTerm": {"loss_view_logits"},
}
#: Without regions and people.
ONE_STAGE = ["AnchorClassTerm", "AnchorRegressionTerm", "HintTerm"]


def wide(kind="fpn", num_classes=3):
    """A teacher with other channels than the student's."""
    return tiny_detector_cfg(kind, num_classes, "MODEL.FPN.OUT_CHANNELS", 24)


def with_prototypes(model, seed=0):
    """Three random prototypes of every group but the last at every level."""
    bank = model.companions["PrototypeBank"]
    generator = torch.Generator().manual_seed(seed)
    for level in range(bank.num_levels):
        dims = (getattr(bank, f"{side}_{level}").shape[2] for side in ("student", "teacher"))
        dims = list(dims)
        for group in range(max(bank.num_groups - 1, 1)):
            parts = [torch.randn(3, d, generator=generator) for d in dims]
            bank.put(level, group, *parts, torch.arange(3), torch.zeros(3, 4))
    if bank.by_identity:
        ids = torch.arange(len(bank.identity_groups))
        bank.identity_groups.copy_(ids % bank.num_groups)
    return model


def check_step(model, batch, names):
    """One step: every loss named and finite, a gradient everywhere, none in the teacher."""
    losses = losses_of(model, batch)
    assert names < losses.keys()
    for name, loss in losses.items():
        assert loss.shape == () and torch.isfinite(loss), name
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(p.grad is None for p in model.teacher.model.parameters())
    return losses


def student_of(architecture, folder, *overrides, terms=OURS):
    """(model, batch) of one of four kinds of students."""
    if architecture == "retinanet":
        teacher = save_teacher(folder, tiny_retinanet_cfg("MODEL.FPN.OUT_CHANNELS", 24))
        model = distiller_of(
            "RetinaNet", *teacher, *overrides, terms=terms, base=tiny_retinanet_cfg
        )
        return model, [object_input(), object_input((1,), seed=1)]
    if architecture == "person search":
        model = distiller_of(
            "PersonSearchRCNN",
            *save_teacher(folder, wide("fpn", 1)),
            *overrides,
            terms=terms,
            base=tiny_cfg,
        )
        return model, [training_input(), training_input((1, 3), seed=1)]
    teacher = save_teacher(folder, wide(architecture))
    model = distiller_of(
        "GeneralizedRCNN", *teacher, *overrides, terms=terms, base=lambda: small(architecture)
    )
    return model, [detection_input(), detection_input((1,), seed=1)]


def small(kind):
    """Of a C4 student half the channels of its teacher."""
    return tiny_detector_cfg(kind, 3, *(("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.125) * (kind == "c4")))


ARCHITECTURES = ["fpn", "c4", "retinanet", "person search"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_student_makes_a_step_before_and_after_prototypes(tmp_path, architecture):
    model, batch = student_of(architecture, tmp_path)
    names = set().union(*LOSSES.values())
    levels = {"c4": 1, "fpn": 5, "retinanet": 5, "person search": 5}[architecture]
    bank = model.companions["PrototypeBank"]
    assert bank.num_levels == levels and bank.is_empty and bank.in_use
    assert bank.student_0.shape[2] != bank.teacher_0.shape[2]
    before = check_step(model, batch, names)
    assert before["loss_global_knowledge"] == 0
    model.zero_grad()
    after = check_step(with_prototypes(model), batch, names)
    assert all(after[name] > 0 for name in names)
    # Each alone moves the student's backbone.
    first = next(p for p in model.student.backbone.parameters() if p.requires_grad)
    losses = losses_of(model, batch)
    for name in sorted(names):
        (gradient,) = torch.autograd.grad(losses[name], first, retain_graph=True)
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_without_objects_train_too(tmp_path, architecture):
    model, _ = student_of(architecture, tmp_path)
    make = {"retinanet": object_input, "person search": training_input}.get(
        architecture, detection_input
    )
    losses = check_step(with_prototypes(model), [make(()), make((), seed=1)], set())
    for name in ("loss_global_knowledge", "loss_feature_foreground", "loss_weighted_soft"):
        assert losses[name] == 0
    assert losses["loss_feature_background"] > 0


def test_people_are_compared_with_their_cluster(tmp_path):
    overrides = (f"{NODE}.GROUPS", "identity", f"{NODE}.CLUSTERS", 3)
    model, batch = student_of("person search", tmp_path, *overrides)
    bank = model.companions["PrototypeBank"]
    assert bank.by_identity and bank.student_0.shape == (3, 10, 16)
    assert bank.identity_groups.tolist() == [-1] * NUM_IDS
    names = set().union(*LOSSES.values())
    check_step(model, batch, names)
    model.zero_grad()
    losses = check_step(with_prototypes(model), batch, names)
    assert all(losses[name] > 0 for name in names)


@pytest.mark.parametrize("architecture", ["fpn", "retinanet"])
def test_half_precision_of_the_networks_is_no_half_precision_of_the_comparison(
    tmp_path, architecture
):
    model, batch = student_of(architecture, tmp_path)
    with_prototypes(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch)
        kept = {name: losses[name] for name in set().union(*LOSSES.values())}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(loss.dtype == torch.float32 and loss > 0 for loss in kept.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_losses_fade_with_the_attenuation_and_soft_labels_do_not(tmp_path):
    model, batch = student_of("fpn", tmp_path)
    with_prototypes(model)
    full = losses_of(model, batch)
    model.companions["PrototypeBank"].attenuation = 0.25
    faded = losses_of(model, batch)
    for name in ("loss_global_knowledge", "loss_feature_foreground", "loss_feature_background"):
        torch.testing.assert_close(faded[name], 0.25 * full[name])
    torch.testing.assert_close(faded["loss_weighted_soft"], full["loss_weighted_soft"])


@pytest.mark.parametrize("terms", [["WeightedFeatureTerm"], OURS])
def test_the_unweighted_ablation_needs_prototypes_for_the_global_loss_alone(tmp_path, terms):
    model, batch = student_of("fpn", tmp_path, f"{NODE}.WEIGHTED", False, terms=terms)
    assert model.companions["PrototypeBank"].in_use == ("GlobalKnowledgeTerm" in terms)
    check_step(with_prototypes(model), batch, set().union(*(LOSSES[name] for name in terms)))


def test_prototypes_are_moved_and_never_part_of_the_student(tmp_path):
    model, _ = student_of("fpn", tmp_path)
    bank = model.companions["PrototypeBank"]
    assert not any("companions" in name for name in model.student.state_dict())
    assert not list(bank.parameters())
    model.to("meta")
    assert bank.student_0.device.type == "meta"


def test_networks_that_cannot_be_compared_are_refused_in_one_line(tmp_path):
    re_id = reid_cfg("MODEL.META_ARCHITECTURE", "Distiller")
    re_id.merge_from_list(
        ["DISTILLATION.STUDENT_META_ARCH", "ReIDNetwork", "DISTILLATION.TERMS", OURS]
    )
    retinanet = save_teacher(tmp_path, tiny_retinanet_cfg())
    for build, message in (
        (
            lambda: build_model(re_id),
            "DISTILLATION.TERMS.*GlobalKnowledgeTerm.*features.*ReIDNetwork",
        ),
        (
            lambda: distiller_of("GeneralizedRCNN", terms=OURS),
            "TEACHER.CONFIG_FILE.*features, regions.foreground_logits",
        ),
        (
            lambda: distiller_of(
                "GeneralizedRCNN",
                *retinanet,
                terms=["WeightedSoftLabelTerm"],
            ),
            "regions.foreground_logits.*DistillableRetinaNet",
        ),
        (
            lambda: distiller_of(
                "GeneralizedRCNN",
                *retinanet,
                terms=["GlobalKnowledgeTerm"],
                base=lambda: small("c4"),
            ),
            r"\[res4 of stride 16\].*\[p3",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            build()
        assert "\n" not in str(error.value)


def test_a_distiller_without_the_bank_is_refused(tmp_path):
    model, _ = student_of("fpn", tmp_path)
    with pytest.raises(ValueError, match="GlobalKnowledgeTerm.*PrototypeBank"):
        type(model)(student=model.student, terms=model.terms, teacher=model.teacher)


# Beside every other term


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Overrides of a person search student with both teachers and a table."""
    folder = tmp_path_factory.mktemp("everything")
    write_table(folder / "table.pth")
    reid = reid_cfg("MODEL.REID_NETWORK.NUM_IDS", NUM_IDS, "REID_DATA.SIZE", (64, 32))
    return [
        *save_teacher(folder, tiny_cfg("fpn", "MODEL.FPN.OUT_CHANNELS", 24)),
        *save_teacher(folder, reid, "REID_TEACHER"),
        *("DISTILLATION.ID_TABLE.PATH", str(folder / "table.pth")),
        *("DISTILLATION.ID_TABLE.QUEUE_SIZE", 4, "DISTILLATION.DKD.PROJECTION", True),
    ]


def test_every_registered_term_is_tried():
    assert {name for name, _ in DISTILLATION_TERM_REGISTRY} == OTHERS.keys() | LOSSES.keys()


def pairs(others):
    ours = [(a, b) for i, a in enumerate(OURS) for b in OURS[i + 1 :]]
    return ours + [(a, b) for a in OURS for b in others]


@pytest.mark.parametrize(("ours", "other"), pairs(OTHERS))
def test_person_search_with_each_pair_of_terms(everything, tmp_path, ours, other):
    model = distiller_of("PersonSearchRCNN", *everything, terms=[other, ours], base=tiny_cfg)
    batch = [crops_input(tmp_path, (0, -1, 3)), crops_input(tmp_path, (1,), seed=1)]
    names = LOSSES[ours] | {**LOSSES, **OTHERS}[other]
    losses = check_step(with_prototypes(model), batch, names)
    assert all(losses[name] > 0 for name in LOSSES[ours])


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory):
    """Overrides of a student with a RetinaNet as its teacher."""
    cfg = tiny_retinanet_cfg("MODEL.FPN.OUT_CHANNELS", 24)
    return save_teacher(tmp_path_factory.mktemp("retinanet"), cfg)


@pytest.mark.parametrize(("ours", "other"), pairs(ONE_STAGE))
def test_retinanet_with_each_pair_of_terms(retinanet, ours, other):
    model = distiller_of("RetinaNet", *retinanet, terms=[other, ours], base=tiny_retinanet_cfg)
    batch = [object_input(), object_input((1,), seed=1)]
    names = LOSSES[ours] | {**LOSSES, **OTHERS}[other]
    losses = check_step(with_prototypes(model), batch, names)
    assert all(losses[name] > 0 for name in LOSSES[ours])


def test_all_terms_at_once(everything, tmp_path):
    terms = [*OTHERS, *OURS]
    model = distiller_of("PersonSearchRCNN", *everything, terms=terms, base=tiny_cfg)
    batch = [crops_input(tmp_path, (0, -1, 3)), crops_input(tmp_path, (1,), seed=1)]
    check_step(with_prototypes(model), batch, set().union(*OTHERS.values(), *LOSSES.values()))
