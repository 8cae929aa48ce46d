"""Networks of torchvision in every meta-architecture: training, detection, distillation, export."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from tiny import detection_input, picture, tiny_cfg, tiny_detector_cfg, training_input
from tiny_distiller import distiller_of, losses_of, save_teacher
from tiny_reid import reid_cfg
from tiny_retinanet import object_input, tiny_retinanet_cfg
from tiny_training_set import forget, register_people, write_pictures
from torchvision.models import SwinTransformer

import kd_search.modeling.backbones.torchvision_backbones as torchvision_backbones
from kd_search.engine import PersonSearchTrainer
from kd_search.export import check_parity, export_torchscript, load_exported
from kd_search.modeling import as_distillable
from kd_search.modeling.backbones.torchvision_backbones import create_network
from tests.engine.toy import assert_same, everything

MAPS = ["res2", "res3", "res4", "res5"]
#: The smallest of each kind: convolutions, and a transformer with channels in the last place.
NAMES = ("mobilenet_v2", "swin_t")
BUILDERS = {
    "fpn": "build_torchvision_fpn_backbone",
    "c4": "build_torchvision_backbone",
    "retinanet": "build_retinanet_torchvision_fpn_backbone",
}


@pytest.fixture(autouse=True)
def _small_swin(monkeypatch):
    """A block in each stage, and in res4 a second with shifted windows."""

    def create(name, width=1.0):
        if name != "swin_t":
            return create_network(name, width)
        return SwinTransformer([4, 4], 16, [1, 1, 2, 1], [1, 1, 2, 2], [7, 7])

    monkeypatch.setattr(torchvision_backbones, "create_network", create)


def overrides(name, kind="fpn"):
    maps = MAPS[1:] if kind == "retinanet" else MAPS
    return (
        *("MODEL.BACKBONE.NAME", BUILDERS[kind], "MODEL.TORCHVISION.NAME", name),
        *("MODEL.TORCHVISION.WIDTH_MULTIPLIER", 0.25 if name == "mobilenet_v2" else 1.0),
        *("MODEL.TORCHVISION.OUT_FEATURES", ["res4"], "MODEL.FPN.IN_FEATURES", maps),
    )


def trained_parameters(model, batch):
    """Names of all parameters, and of those that a training step gives a gradient."""
    torch.manual_seed(0)
    with EventStorage():
        losses = model.train()(copy.deepcopy(batch))
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    parameters = {n for n, p in model.named_parameters() if p.requires_grad}
    return parameters, {n for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["fpn", "c4"])
@pytest.mark.parametrize("name", NAMES)
def test_person_search_network_trains_and_searches(name, kind):
    torch.manual_seed(0)
    few = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4, "MODEL.RPN.POST_NMS_TOPK_TEST", 3)
    model = build_model(tiny_cfg(kind, *overrides(name, kind), *few))
    every, trained = trained_parameters(model, [training_input(), training_input((2,), seed=1)])
    assert every == trained
    if kind == "c4":
        assert any(n.startswith("roi_heads.res5.features") for n in trained)
    with torch.no_grad():
        (output,) = model.eval()([{"image": picture(3, (70, 101)), "height": 70, "width": 101}])
        embeddings = model.embed(
            [{"image": picture(3, (70, 101))}], [torch.tensor([[3.0, 4.0, 40.0, 60.0]])]
        )
    assert output["instances"].pred_embeddings.shape[1] == 8
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(1))


def test_c4_network_may_have_a_last_stage_of_its_own_for_identities():
    cfg = tiny_cfg("c4", *overrides("mobilenet_v2", "c4"), "MODEL.REID_HEAD.SEPARATE_RES5", True)
    model = build_model(cfg)
    every, trained = trained_parameters(model, [training_input(), training_input((2,), seed=1)])
    assert every == trained and any(n.startswith("roi_heads.reid_res5.") for n in trained)


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_detector_of_detectron2_trains(kind):
    model = build_model(as_distillable(tiny_detector_cfg(kind, 3, *overrides(NAMES[0], kind))))
    every, trained = trained_parameters(model, [detection_input(), detection_input((1,), seed=1)])
    assert every == trained


@pytest.mark.parametrize("name", NAMES)
def test_retinanet_trains(name):
    model = build_model(tiny_retinanet_cfg(*overrides(name, "retinanet")))
    every, trained = trained_parameters(model, [object_input(), object_input((2,), seed=1)])
    assert every == trained


@pytest.mark.parametrize("name", NAMES)
def test_reid_network_trains(name):
    cfg = reid_cfg(*overrides(name, "c4"), "MODEL.TORCHVISION.OUT_FEATURES", ["res5"])
    model = build_model(cfg)
    frames = [{"frames": 255 * torch.rand(1, 3, 64, 32), "person_id": i} for i in (0, 0, 1, 1)]
    every, trained = trained_parameters(model, frames)
    assert every == trained


@pytest.mark.parametrize("student", ["r18", "mobilenet_v2"])
def test_hints_of_other_channels_between_backbones(tmp_path, student):
    """The bottom-up maps of the networks differ in channels; the pyramids as well."""
    wide = overrides("mobilenet_v3_small")
    teacher = tiny_detector_cfg("fpn", 3, *wide, "MODEL.FPN.OUT_CHANNELS", 24)
    own = overrides("mobilenet_v2") if student != "r18" else ()
    model = distiller_of(
        "GeneralizedRCNN",
        *save_teacher(tmp_path, teacher),
        *own,
        terms=["HintTerm", "RegionClassTerm"],
    )
    losses = losses_of(model, [detection_input()])
    hint = next(v for k, v in losses.items() if "hint" in k)
    hint.backward()
    assert torch.isfinite(hint) and hint > 0
    lateral = model.student.backbone.fpn_lateral4.weight
    assert lateral.grad is not None and lateral.grad.any()
    assert model.teacher.model.backbone.fpn_lateral4.weight.grad is None


def test_teacher_needs_no_file_of_its_backbone_beside_its_own_weights(tmp_path):
    teacher = tiny_detector_cfg("fpn", 3, *overrides("mobilenet_v2"))
    given = save_teacher(tmp_path, teacher)
    teacher.merge_from_list(
        [
            *("MODEL.TORCHVISION.WEIGHTS", "gone.pth", "INPUT.FORMAT", "RGB"),
            *("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
            *("MODEL.PIXEL_STD", [58.395, 57.12, 57.375]),
        ]
    )
    (tmp_path / "teacher.yaml").write_text(teacher.dump())
    model = distiller_of("GeneralizedRCNN", *given, terms=["RegionClassTerm"])
    saved = torch.load(tmp_path / "teacher.pth", weights_only=True)["model"]
    assert_same(dict(model.teacher.model.state_dict()), dict(saved))


@pytest.fixture
def people(tmp_path):
    write_pictures(tmp_path / "pictures", 4)
    yield register_people("backbone_people", tmp_path / "pictures")
    forget("backbone_people")


# The last has stochastic depth, whose random numbers belong to the iteration.
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_resumed_training_equals_a_straight_one_bit_for_bit(tmp_path, people, name):
    def train(folder, until=4):
        cfg = tiny_cfg(
            "fpn",
            *overrides(name),
            *("DATASETS.TRAIN", (people,), "DATASETS.TEST", (), "SEED", 3),
            *("SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.CHECKPOINT_PERIOD", 2),
            *("DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (96,), "SOLVER.STEPS", (3,)),
            *("OUTPUT_DIR", str(tmp_path / folder)),
        )
        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.max_iter = until
        trainer.train()
        return trainer

    straight = train("straight")
    train("halves", until=2)
    resumed = train("halves")
    assert resumed.start_iter == 2
    assert_same(everything(straight), everything(resumed))


@pytest.mark.parametrize(
    ("name", "kind"), [("mobilenet_v2", "fpn"), ("mobilenet_v2", "c4"), ("swin_t", "c4")]
)
def test_exported_file_gives_the_networks_detections_at_other_sizes(tmp_path, name, kind):
    torch.manual_seed(1)
    cfg = tiny_cfg(kind, *overrides(name, kind), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 5
    model = build_model(cfg).eval()
    predictor = model.roi_heads.box_predictor
    images = [picture(seed, size) for seed, size in enumerate([(96, 128), (97, 65), (33, 150)])]
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([{"image": images[0]}]).tensor)
        logits, deltas = model.roi_heads.predict_boxes(
            features, [Boxes(torch.tensor([[0.0, 0, 60, 90], [70, 30, 120, 90]]))]
        )
        # Random layers amplify: brought back to the size that trained layers give.
        predictor.cls_score.weight.div_(logits.abs().max())
        predictor.bbox_pred.weight.div_(deltas.abs().max())
    path = tmp_path / "network.ts"
    export_torchscript(model, path, cfg=cfg, check_images=images)
    report = check_parity(model, load_exported(path), images)
    assert all(row["detections"] for row in report["images"])
