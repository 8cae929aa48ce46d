"""Detectors of other packages as students and teachers of terms on features."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet, build_model
from detectron2.utils.events import EventStorage
from tiny import detection_input, tiny_detector_cfg
from tiny_retinanet import tiny_retinanet_cfg
from torch import nn

from kd_search.distillation import Distiller, FrozenTeacher
from kd_search.distillation.methods.detector import HintTerm, RegionClassTerm
from kd_search.engine.task import check_num_classes
from kd_search.modeling import DistillableRetinaNet, build_distillable
from kd_search.outputs import Part

FEATURES = frozenset({Part.FEATURES})


class OwnRCNN(GeneralizedRCNN):
    """Adds a loss in a forward() of its own."""

    def forward(self, batched_inputs):
        if not self.training:
            return super().forward(batched_inputs)
        losses = super().forward(batched_inputs)
        return {**losses, "loss_own": losses["loss_cls"] * 0.5}


class OwnRetinaNet(RetinaNet):
    """Detectron2's, under another name."""


@pytest.fixture(params=[OwnRCNN, OwnRetinaNet], ids=lambda network: network.__name__)
def cfg(request, monkeypatch):
    """Config of a network that is registered for one test."""
    network = request.param
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, network.__name__, network)
    cfg = tiny_detector_cfg() if network is OwnRCNN else tiny_retinanet_cfg()
    cfg.MODEL.META_ARCHITECTURE = network.__name__
    return cfg


def test_weights_and_detections_are_those_of_the_network(cfg):
    torch.manual_seed(0)
    plain = build_model(cfg).eval()
    torch.manual_seed(0)
    network = build_distillable(cfg).eval()
    assert isinstance(network, META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE))
    ours, theirs = network.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    image = [{"image": detection_input()["image"]}]
    found, expected = (model(image)[0]["instances"] for model in (network, plain))
    assert torch.equal(found.scores, expected.scores)


def test_features_are_taught_beside_the_network_s_own_losses(cfg):
    student, teacher = build_distillable(cfg), build_distillable(cfg)
    term = HintTerm()
    distiller = Distiller(
        student=student,
        terms=nn.ModuleDict({"HintTerm": term}),
        teacher=FrozenTeacher(teacher, FEATURES),
    )
    batch = [detection_input()]
    with EventStorage():
        losses = distiller(batch)
    assert ("loss_own" in losses) == (cfg.MODEL.META_ARCHITECTURE == "OwnRCNN")
    losses["loss_hint"].backward()
    assert next(student.backbone.parameters()).grad is not None
    outputs = teacher.forward_teacher(batch, FEATURES)
    expected = teacher.backbone(teacher.preprocess_image(batch).tensor)
    assert all(torch.equal(outputs.get(Part.FEATURES)[name], expected[name]) for name in expected)


def test_the_losses_of_a_subclass_of_retinanet_are_no_torchscript(cfg):
    """TorchScript is compiled again after some calls: a resumed run would round otherwise."""
    if cfg.MODEL.META_ARCHITECTURE == "OwnRetinaNet":
        assert type(build_distillable(cfg)).losses is DistillableRetinaNet.losses


def test_terms_on_regions_say_what_the_network_lacks(cfg):
    name = cfg.MODEL.META_ARCHITECTURE
    with pytest.raises(
        ValueError, match=rf"RegionClassTerm.*regions\.logits.*{name}.*forward_train"
    ):
        Distiller(student=build_distillable(cfg), terms=nn.ModuleDict({"T": RegionClassTerm()}))
    with pytest.raises(ValueError, match=rf"CONFIG_FILE.*anchors\.deltas.*{name}"):
        FrozenTeacher(build_distillable(cfg), frozenset({Part.ANCHOR_DELTAS}))


def test_the_number_of_classes_is_compared_for_subclasses(cfg, objects_of_seven):
    with pytest.raises(ValueError, match=r"NUM_CLASSES.*things_of_seven"):
        check_num_classes(cfg, [objects_of_seven])


@pytest.fixture
def objects_of_seven():
    """A registered set of seven classes."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    name = "things_of_seven"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).thing_classes = [str(number) for number in range(7)]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_an_architecture_that_is_not_registered_is_named():
    cfg = tiny_detector_cfg()
    cfg.MODEL.META_ARCHITECTURE = "NoSuchNetwork"
    with pytest.raises(ValueError, match=r"MODEL\.META_ARCHITECTURE 'NoSuchNetwork'"):
        build_distillable(cfg)
