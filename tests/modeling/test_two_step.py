"""Search in two steps: a detector, and a re-ID network on crops of the original image."""

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image
from tiny import picture, tiny_detector_cfg, training_input
from torch.nn import functional as F  # noqa: N812

from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.synthetic import PRESETS, generate_dataset
from tests.tiny_reid import reid_cfg

CROP = (32, 16)
#: The network's input is half as wide and high as the original, a picture of 192 x 256.
BOXES = torch.tensor([[10.0, 20.0, 90.0, 180.0], [100.0, 6.0, 170.0, 150.0]])


@pytest.fixture(scope="module")
def reid_files(tmp_path_factory):
    """Config file and weights of a re-ID network, by its image format, and the network."""
    made = {}
    for image_format in ("BGR", "RGB"):
        folder = tmp_path_factory.mktemp(image_format)
        cfg = reid_cfg("INPUT.FORMAT", image_format, "REID_DATA.SIZE", list(CROP))
        torch.manual_seed(3)
        network = build_model(cfg).eval()
        torch.nn.init.normal_(network.neck.running_mean)
        torch.save({"model": network.state_dict()}, folder / "model.pth")
        (folder / "reid.yaml").write_text(cfg.dump())
        made[image_format] = (folder, network)
    return made


def two_step_cfg(folder, *overrides):
    return tiny_detector_cfg(
        "fpn",
        1,
        *("MODEL.META_ARCHITECTURE", "TwoStepSearch"),
        *("MODEL.TWO_STEP.REID.CONFIG_FILE", str(folder / "reid.yaml")),
        *("MODEL.TWO_STEP.REID.WEIGHTS", str(folder / "model.pth")),
        *overrides,
    )


def test_input(**more):
    original = picture(1, (192, 256))
    image = F.interpolate(original[None].float(), (96, 128))[0].to(torch.uint8)
    matrix = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    size = {"height": 192, "width": 256, "image_id": 1}
    return {"image": image, "original_image": original, "to_original": matrix, **size, **more}


test_input.__test__ = False


def expected(network, image, boxes):
    """Embeddings by the network's own inputs, its crops cut by Pillow."""
    frames = []
    for x0, y0, x1, y1 in boxes.tolist():
        cut = image[:, int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
        pixels = [Image.fromarray(c.numpy().astype(np.float32)) for c in cut]
        resized = [np.asarray(p.resize(CROP[::-1], Image.Resampling.BILINEAR)) for p in pixels]
        frames.append({"frames": torch.from_numpy(np.stack(resized))[None]})
    found = torch.stack([x["embedding"] for x in network(frames)]).double()
    return found / found.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@torch.no_grad()
def test_detections_and_queries_have_the_embeddings_of_their_crops(reid_files, image_format):
    folder, reid = reid_files[image_format]
    cfg = two_step_cfg(folder, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    model = build_model(cfg).eval()
    x = test_input(query_boxes=BOXES[:1] / 2, annotated_boxes=BOXES / 2)
    (output,) = model([x])
    # The picture is in the detector's format, BGR.
    image = x["original_image"].flip(0) if image_format == "RGB" else x["original_image"]
    people = output["instances"]
    assert len(people) and people.image_size == (192, 256)
    boxes = people.pred_boxes.tensor
    assert people.pred_embeddings.shape == (len(people), reid.classifier.in_features)
    wide = (boxes[:, 2:] - boxes[:, :2]).min(dim=1).values > 2
    torch.testing.assert_close(
        people.pred_embeddings[wide].double(),
        expected(reid, image, boxes[wide]),
        rtol=0,
        atol=1e-3,
    )
    own = output["query_embeddings"].double()
    torch.testing.assert_close(own, expected(reid, image, BOXES[:1]), rtol=0, atol=1e-3)
    annotated = output["gt_instances"]
    assert torch.equal(annotated.pred_boxes.tensor, BOXES)
    # Not the same bits: a batch of another size.
    torch.testing.assert_close(annotated.pred_embeddings[:1], output["query_embeddings"])


@torch.no_grad()
def test_given_boxes_replace_detection(reid_files):
    folder, _ = reid_files["BGR"]
    model = build_model(two_step_cfg(folder)).eval()
    x = test_input(gallery_boxes=BOXES / 2)
    (output,) = model([x])
    people = output["instances"]
    assert torch.equal(people.pred_boxes.tensor, BOXES) and people.scores.tolist() == [1.0, 1.0]
    assert torch.equal(people.pred_embeddings, model.embed(x, BOXES))
    (output,) = model([test_input(gallery_boxes=BOXES[:0], query_boxes=BOXES[:0])])
    assert output["instances"].pred_embeddings.shape == output["query_embeddings"].shape
    assert len(output["query_embeddings"]) == 0


def test_it_is_its_detector_in_training_and_in_checkpoints(reid_files):
    folder, reid = reid_files["BGR"]
    cfg = two_step_cfg(folder)
    torch.manual_seed(0)
    model = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    detector = build_model(cfg)
    assert model.state_dict().keys() == detector.state_dict().keys()
    detector.load_state_dict(model.state_dict())
    losses = []
    for network in (model, detector):
        torch.manual_seed(1)
        with EventStorage():
            losses.append(network.train()([training_input()]))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])
    assert not model.reid.training
    for key, value in reid.state_dict().items():
        assert torch.equal(value, model.reid.state_dict()[key])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["MODEL.TWO_STEP.REID.CONFIG_FILE", ""], "MODEL.TWO_STEP.REID.CONFIG_FILE is empty"),
        (["MODEL.TWO_STEP.REID.WEIGHTS", ""], "MODEL.TWO_STEP.REID.WEIGHTS is empty"),
        (
            ["MODEL.TWO_STEP.REID.OPTS", ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]],
            "MODEL.TWO_STEP.REID.CONFIG_FILE: GeneralizedRCNN is no ReIDNetwork",
        ),
        (["MODEL.TWO_STEP.REID.OPTS", ["MODEL.NOTHING", "1"]], "MODEL.TWO_STEP.REID.OPTS"),
    ],
)
def test_wrong_keys_are_one_line(reid_files, overrides, message):
    folder, _ = reid_files["BGR"]
    with pytest.raises(ValueError) as error:
        build_model(two_step_cfg(folder, *overrides))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_the_original_image_it_says_what_to_set(reid_files):
    folder, _ = reid_files["BGR"]
    model = build_model(two_step_cfg(folder)).eval()
    x = test_input()
    del x["original_image"]
    with pytest.raises(ValueError, match="INPUT.WITH_ORIGINAL_IMAGE"):
        model([x])


def test_it_is_evaluated_as_person_search(reid_files, tmp_path, monkeypatch):
    folder, _ = reid_files["BGR"]
    generate_dataset(tmp_path / "data", PRESETS["tiny"], seed=0, progress=False)
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(tmp_path / "data"))
    sets = ["DATASETS.TRAIN", "('kd_generated_train',)", "DATASETS.TEST", "('kd_generated_test',)"]
    sets += ["INPUT.WITH_ORIGINAL_IMAGE", "True", "DATALOADER.NUM_WORKERS", "0"]
    cfg = two_step_cfg(folder, "OUTPUT_DIR", str(tmp_path / "out"), *sets)
    path = tmp_path / "two_step.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(cfg.dump())))
    cfg = build_config(str(path), ["TEST.PERSON_SEARCH.USE_GT_BOXES", "True"])
    model = PersonSearchTrainer.build_model(cfg).eval()
    results = PersonSearchTrainer.test(cfg, model)
    assert 0 < results["person_search"]["mAP"] <= 100
    # Training batches need no original.
    batch = next(iter(PersonSearchTrainer.build_train_loader(cfg)))
    assert "original_image" not in batch[0] and "instances" in batch[0]
