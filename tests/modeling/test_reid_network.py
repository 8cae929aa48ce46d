"""The re-ID network: sets, neck, losses, and its outputs as a teacher."""

import pytest
import torch
from detectron2.modeling import build_model
from tiny_reid import reid_cfg
from torch.nn import functional as F

from kd_search.outputs import IDENTITY_PARTS

SIZE = (64, 32)


def network(*overrides):
    torch.manual_seed(0)
    return build_model(reid_cfg(*overrides))


def batch(ids=(0, 0, 2, 2, -1), frames=2):
    generator = torch.Generator().manual_seed(1)
    shape = (frames, 3, *SIZE)
    return [
        {"frames": torch.randint(0, 256, shape, generator=generator).float(), "person_id": i}
        for i in ids
    ]


def test_a_set_is_the_mean_of_its_frames_before_the_neck_and_of_their_logits():
    model = network().eval()
    inputs = batch()
    known = model.forward_train(inputs)[1].identities
    for row, sample in enumerate(inputs):
        features, logits = [], []
        for frame in sample["frames"]:
            image = (frame - model.pixel_mean) / model.pixel_std
            feature = model.backbone(image[None])["res5"].mean(dim=(2, 3))
            features.append(feature[0])
            logits.append(model.classifier(model.neck(feature))[0])
        for found, parts in ((known.embeddings, features), (known.logits, logits)):
            expected = torch.stack(parts).mean(dim=0)
            # Convolutions of one frame and of ten may sum in another order in every layer:
            # a hundredfold of float32's precision, of the largest number.
            atol = 100 * torch.finfo(torch.float32).eps * expected.abs().max().item()
            torch.testing.assert_close(found[row], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("where", ["before", "after"])
def test_test_embedding_lies_before_or_after_the_neck(where):
    model = network("MODEL.REID_NETWORK.TEST_EMBEDDING", where).eval()
    model.neck.running_mean.fill_(0.5)
    with torch.no_grad():
        features = model.forward_train(batch())[1].identities.embeddings
        expected = features if where == "before" else model.neck(features)
        found = torch.stack([x["embedding"] for x in model(batch())])
    torch.testing.assert_close(found, expected)


def test_losses_are_means_over_labelled_samples():
    model = network("MODEL.REID_NETWORK.LABEL_SMOOTHING", 0.1, "MODEL.REID_NETWORK.CLS_WEIGHT", 2.0)
    losses, outputs = model.forward_train(batch())
    known = outputs.identities
    labelled = torch.tensor([0, 0, 2, 2])
    expected = F.cross_entropy(known.logits[:4], labelled, label_smoothing=0.1)
    torch.testing.assert_close(losses["loss_reid_cls"], 2 * expected)
    x, total = known.embeddings.double(), 0.0
    for i, positive, negatives in ((0, 1, (2, 3)), (1, 0, (2, 3)), (2, 3, (0, 1)), (3, 2, (0, 1))):
        far = (x[i] - x[positive]).norm()
        near = min((x[i] - x[n]).norm() for n in negatives)
        total += torch.log1p(torch.exp(far - near)) / 4
    torch.testing.assert_close(losses["loss_reid_triplet"].double(), total, rtol=1e-4, atol=1e-5)


def test_without_a_label_losses_are_zero_with_a_graph():
    model = network()
    losses = model(batch(ids=(-1, -1)))
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)


def test_bias_of_the_neck_stays_zero():
    model = network()
    sum(model(batch()).values()).backward()
    assert model.neck.bias.grad is None and (model.neck.bias == 0).all()
    assert model.neck.weight.grad.abs().sum() > 0


def test_a_teacher_classifies_sets_and_crops_without_gradient():
    model = network().eval()
    known = model.forward_teacher(batch(), IDENTITY_PARTS).identities
    assert not known.embeddings.requires_grad and known.logits.shape == (5, 5)
    single = batch(frames=1)
    with torch.no_grad():
        features = model.crop_features(torch.cat([x["frames"] for x in single]))
        embeddings, logits = model.classify(features)
        expected = torch.stack([x["embedding"] for x in model(single)])
        expected_logits = model.forward_train(single)[1].identities.logits
    torch.testing.assert_close(embeddings, expected)
    torch.testing.assert_close(logits, expected_logits)
    none = model.classify(model.crop_features(torch.zeros(0, 3, *SIZE)))
    assert [x.shape for x in none] == [(0, 128), (0, 5)]


@pytest.mark.parametrize("depth", [18, 50])
def test_res5_keeps_its_resolution_and_may_end_without_relu(depth):
    shapes, signs = {}, {}
    for stride, relu in ((2, True), (1, True), (1, False)):
        model = network(
            *("MODEL.RESNETS.RES5_STRIDE", stride, "MODEL.RESNETS.FINAL_RELU", relu),
            *("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256),
        )
        x = model.eval().backbone(torch.randn(1, 3, *SIZE))["res5"]
        shapes[stride], signs[relu] = x.shape[2:], float(x.detach().min())
        stage = model.spec().features["res5"]
        assert stage.stride == 32 // 2 ** (2 - stride) and stage.channels == x.shape[1]
    assert shapes == {2: (2, 1), 1: (4, 2)}
    assert signs[True] >= 0 > signs[False]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="NUM_IDS is 0"):
        network("MODEL.REID_NETWORK.NUM_IDS", 0)
    with pytest.raises(ValueError, match="TEST_EMBEDDING 'middle'"):
        network("MODEL.REID_NETWORK.TEST_EMBEDDING", "middle")
