"""Whole steps of detector distillation: students, teachers and terms of every kind."""

import copy

import pytest
import tiny_distiller
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from tiny import detection_input, tiny_cfg, tiny_detector_cfg, training_input
from tiny_distiller import losses_of, save_teacher
from tiny_retinanet import object_input, tiny_retinanet_cfg
from tiny_table import write_table
from torch import nn

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.distillation import Distiller, FrozenTeacher
from kd_search.distillation.methods.detector import HintTerm, RegionClassTerm
from kd_search.export import trace_person_search
from kd_search.modeling import as_distillable
from kd_search.outputs import Part

REGION = ["RegionClassTerm", "RegionRegressionTerm"]
ANCHOR = ["AnchorClassTerm", "AnchorRegressionTerm"]
ALL = [*REGION, *ANCHOR, "HintTerm"]
LOSSES = {
    "RegionClassTerm": "loss_region_soft",
    "RegionRegressionTerm": "loss_region_bounded",
    "AnchorClassTerm": "loss_anchor_soft",
    "AnchorRegressionTerm": "loss_anchor_bounded",
    "HintTerm": "loss_hint",
}


def distiller_of(meta_arch, *overrides, terms=ALL, base=tiny_detector_cfg):
    return tiny_distiller.distiller_of(meta_arch, *overrides, terms=terms, base=base)


def test_rcnn_learns_from_a_wider_rcnn_at_every_level(tmp_path):
    teacher = save_teacher(tmp_path, tiny_detector_cfg("fpn", 3, "MODEL.FPN.OUT_CHANNELS", 24))
    model = distiller_of("GeneralizedRCNN", *teacher)
    losses = losses_of(model, [detection_input(), detection_input((1,), seed=1)])
    assert {LOSSES[name] for name in ALL} < losses.keys()
    plain = losses_of(model.student, [detection_input(), detection_input((1,), seed=1)])
    for name in ("loss_cls", "loss_rpn_cls"):
        torch.testing.assert_close(losses[name], 0.5 * plain[name])
    for name in ("loss_box_reg", "loss_rpn_loc"):
        torch.testing.assert_close(losses[name], plain[name])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in model.teacher.model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_each_term_alone_trains_the_student(tmp_path, name):
    model = distiller_of(
        "GeneralizedRCNN", *save_teacher(tmp_path, tiny_detector_cfg()), terms=[name]
    )
    # Bounded regression is zero where the student is better than the teacher.
    for term in model.terms.values():
        if hasattr(term, "margin"):
            term.margin = 1e9
    losses = losses_of(model, [detection_input()])
    losses[LOSSES[name]].backward()
    gradient = sum(
        float(p.grad.abs().sum()) for p in model.student.parameters() if p.grad is not None
    )
    assert losses[LOSSES[name]] > 0 and gradient > 0


def test_c4_student_learns_from_an_fpn_teacher_by_regions_and_hints(tmp_path):
    model = distiller_of(
        "PersonSearchRCNN",
        *save_teacher(tmp_path, tiny_detector_cfg("fpn", 1)),
        *("DISTILLATION.HINT.FEATURES", [["res4", "p4"]]),
        terms=[*REGION, "HintTerm"],
        base=lambda: tiny_cfg("c4"),
    )
    losses = losses_of(model, [training_input()])
    sum(losses.values()).backward()
    assert losses["loss_hint"] > 0 and torch.isfinite(losses["loss_region_soft"])


def test_other_anchors_are_refused_when_the_model_is_built(tmp_path):
    teacher = save_teacher(tmp_path, tiny_detector_cfg("c4"))
    with pytest.raises(ValueError, match=r"AnchorClassTerm.*ANCHOR_GENERATOR.*student \{4: .*\}.*"):
        distiller_of("GeneralizedRCNN", *teacher, terms=["AnchorClassTerm"])


def test_person_search_learns_from_a_detector_and_an_id_table_at_once(tmp_path):
    write_table(tmp_path / "table.pth")
    teacher = save_teacher(tmp_path, tiny_detector_cfg("fpn", 4, "MODEL.FPN.OUT_CHANNELS", 24))
    model = distiller_of(
        "PersonSearchRCNN",
        *teacher,
        *("DISTILLATION.TEACHER.CLASS_MAP", [[2, 0]], "MODEL.OIM.ENABLED", False),
        *("DISTILLATION.ID_TABLE.PATH", str(tmp_path / "table.pth")),
        *("DISTILLATION.ID_TABLE.QUEUE_SIZE", 4),
        terms=["IDTableTerm", *ALL],
        base=tiny_cfg,
    )
    assert type(model.teacher.model).__name__ == "DistillableRCNN"
    losses = losses_of(model, [training_input(), training_input((), seed=1)])
    assert losses["loss_id_table"] > 0 and losses["loss_region_soft"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_retinanet_learns_from_retinanet(tmp_path):
    teacher = save_teacher(tmp_path, tiny_retinanet_cfg())
    model = distiller_of(
        "RetinaNet", *teacher, terms=[*ANCHOR, "HintTerm"], base=tiny_retinanet_cfg
    )
    assert type(model.student).__name__ == "DistillableRetinaNet"
    losses = losses_of(model, [object_input((0, 1)), object_input((), seed=1)])
    assert losses["loss_anchor_soft"] > 0 and losses["loss_hint"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_one_stage_students_have_no_regions_to_learn_from(tmp_path):
    teacher = save_teacher(tmp_path, tiny_retinanet_cfg())
    with pytest.raises(ValueError, match="RegionClassTerm.*regions.logits.*DistillableRetinaNet"):
        distiller_of("RetinaNet", *teacher, terms=REGION, base=tiny_retinanet_cfg)


def test_more_classes_than_the_student_need_a_map(tmp_path):
    teacher = save_teacher(tmp_path, tiny_detector_cfg("fpn", 4))
    with pytest.raises(ValueError, match="4 classes.* 3: .*TEACHER.CLASS_MAP"):
        distiller_of("GeneralizedRCNN", *teacher)


def test_a_teacher_equal_to_the_student_teaches_nothing(tmp_path):
    torch.manual_seed(0)
    cfg = tiny_detector_cfg()
    student = META_ARCH_REGISTRY.get("DistillableRCNN")(as_distillable(cfg))
    terms = nn.ModuleDict(
        {
            "RegionClassTerm": RegionClassTerm(background_weight=1.0, hard_weight=0.0),
            "HintTerm": HintTerm(),
        }
    )
    teacher = FrozenTeacher(copy.deepcopy(student), frozenset({Part.REGION_LOGITS, Part.FEATURES}))
    model = Distiller(student=student, terms=terms, teacher=teacher)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for adapter in terms["HintTerm"].adapters.values():
        adapter.weight.data.copy_(torch.eye(16)[:, :, None, None])
        adapter.bias.data.zero_()
    losses = losses_of(model, [detection_input()])
    weight = student.roi_heads.box_predictor.cls_score.weight
    largest = {
        name: float(torch.autograd.grad(loss, weight, retain_graph=True)[0].abs().max())
        for name, loss in losses.items()
        if name in ("loss_region_soft", "loss_cls")
    }
    # The student's own loss is off (mu = 0), so compare with that of a fresh one.
    own = losses_of(student, [detection_input()])["loss_cls"]
    reference = float(torch.autograd.grad(own, weight)[0].abs().max())
    assert largest["loss_cls"] == 0
    assert largest["loss_region_soft"] < 1e-6 * reference
    scale = teacher.forward_teacher([detection_input()]).features["p2"]
    assert float(losses["loss_hint"].detach()) <= 1e-10 * float(scale.square().mean())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("people", [[()], [(2,)], [(), (0, -1)]])
def test_gradients_are_finite_with_many_people_and_with_none(tmp_path, dtype, people):
    model = distiller_of(
        "PersonSearchRCNN", *save_teacher(tmp_path, tiny_detector_cfg("fpn", 1)), base=tiny_cfg
    )
    batch = [training_input(ids, seed) for seed, ids in enumerate(people)]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        losses = losses_of(model, batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_an_image_of_crowds_alone_is_background(tmp_path):
    import numpy as np
    from detectron2.structures import BoxMode
    from PIL import Image

    from kd_search.data import PersonSearchDatasetMapper

    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "crowd.png")
    crowd = {"bbox": [5, 5, 90, 90], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    sample = PersonSearchDatasetMapper(True, augmentations=[])(
        {
            **{"file_name": str(tmp_path / "crowd.png"), "image_id": 1, "height": 96},
            **{"width": 128, "annotations": [{**crowd, "iscrowd": 1, "person_id": -1}]},
        }
    )
    assert len(sample["instances"]) == 0
    model = distiller_of(
        "PersonSearchRCNN", *save_teacher(tmp_path, tiny_detector_cfg("fpn", 1)), base=tiny_cfg
    )
    losses = losses_of(model, [sample])
    assert losses["loss_region_bounded"] == 0 and losses["loss_anchor_bounded"] == 0
    assert losses["loss_region_soft"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_adapters_are_saved_apart_and_never_exported(tmp_path):
    teacher = save_teacher(tmp_path, tiny_detector_cfg("fpn", 1))
    model = distiller_of("PersonSearchRCNN", *teacher, terms=["HintTerm"], base=tiny_cfg)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = losses_of(model, [training_input()])
    before = {name: value.clone() for name, value in model.terms.state_dict().items()}
    sum(losses.values()).backward()
    optimizer.step()
    after = model.terms.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before) and before
    PersonSearchCheckpointer(model, str(tmp_path)).save("saved")
    saved = torch.load(tmp_path / "saved.pth", weights_only=True)
    assert not any("adapter" in name for name in saved["model"])
    assert set(saved["terms"]) == {
        f"HintTerm.{name}" for name in model.terms["HintTerm"].state_dict()
    }
    again = distiller_of("PersonSearchRCNN", *teacher, terms=["HintTerm"], base=tiny_cfg)
    PersonSearchCheckpointer(again, str(tmp_path)).load(str(tmp_path / "saved.pth"))
    assert all(torch.equal(after[name], value) for name, value in again.terms.state_dict().items())
    names = [name for name, _ in trace_person_search(model.eval()).named_parameters()]
    assert names and not any("adapter" in name for name in names)


def test_student_starts_with_layers_of_the_teacher(tmp_path):
    teacher = save_teacher(tmp_path, tiny_detector_cfg())
    layers = ["backbone.bottom_up.res2", "proposal_generator.rpn_head"]
    model = distiller_of("GeneralizedRCNN", *teacher, "DISTILLATION.INIT_FROM_TEACHER", layers)
    theirs = model.teacher.model.state_dict()
    assert not torch.equal(
        model.student.proposal_generator.rpn_head.conv.weight,
        theirs["proposal_generator.rpn_head.conv.weight"],
    )
    names = model.initialise()
    ours = model.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert {name.split(".")[0] for name in names} == {"backbone", "proposal_generator"}


def test_initialisation_alone_needs_a_teacher_too():
    with pytest.raises(ValueError, match="TEACHER.CONFIG_FILE.*INIT_FROM_TEACHER"):
        distiller_of("GeneralizedRCNN", "DISTILLATION.INIT_FROM_TEACHER", ["backbone"], terms=[])


def test_a_teacher_of_another_channel_order_sees_its_own(tmp_path):
    teacher = save_teacher(tmp_path, tiny_detector_cfg("fpn", 3, "INPUT.FORMAT", "RGB"))
    model = distiller_of("GeneralizedRCNN", *teacher, terms=["HintTerm"])
    x = detection_input()
    seen = model.teacher.forward_teacher([x]).images.tensor
    expected = model.teacher.model.preprocess_image([{**x, "image": x["image"].flip(0)}]).tensor
    assert torch.equal(seen, expected)
