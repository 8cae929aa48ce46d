"""Student and re-ID teacher get crops of the same people, whatever the augmentation."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from torchvision.ops import roi_align

from kd_search.data import PersonSearchDatasetMapper
from kd_search.distillation.methods.dkd import CropSampler
from kd_search.distillation.methods.dkd.crops import is_mirrored
from kd_search.modeling.crops import cut_crops

#: A person's box in the original image, and a bright marker in it: a tenth from its left, seven
#: tenths down.
BOX = (120, 60, 180, 210)
MARKER = (BOX[0] + 6, BOX[1] + 105)
AUGMENTATIONS = {
    "as it is": [],
    "scaled": [T.ResizeTransform(240, 320, 480, 640)],
    "stretched": [T.ResizeTransform(240, 320, 360, 400)],
    "mirrored": [T.HFlipTransform(320)],
    "cropped, mirrored and scaled": [
        T.CropTransform(60, 20, 200, 210),
        T.HFlipTransform(200),
        T.ResizeTransform(210, 200, 315, 300),
    ],
}


def sample(tmp_path, augmentations):
    image = np.zeros((240, 320, 3), dtype=np.uint8)
    x, y = MARKER
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
    Image.fromarray(image).save(tmp_path / "marked.png")
    person = {"bbox": list(BOX), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "person_id": 3}
    record = {
        **{"file_name": str(tmp_path / "marked.png"), "image_id": 1},
        **{"height": 240, "width": 320, "annotations": [person]},
    }
    mapper = PersonSearchDatasetMapper(True, augmentations=augmentations, with_original=True)
    return mapper(record)


def brightest(crop):
    """Centre of the bright pixels of a (3, H, W) crop, as fractions of width and height."""
    weight = crop.sum(dim=0)
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in weight.shape), indexing="ij")
    x = float((weight * columns).sum() / weight.sum()) / weight.shape[1]
    y = float((weight * rows).sum() / weight.sum()) / weight.shape[0]
    return x, y


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shifts", [False, True])
def test_a_marker_is_at_the_same_place_of_both_crops(tmp_path, name, shifts):
    x = sample(tmp_path, AUGMENTATIONS[name])
    torch.manual_seed(4)
    sampler = CropSampler(shifts=shifts, input_size=(256, 128), padding=10.0, limit=20.0)
    crops = sampler([x])
    assert crops.boxes[0].shape == (1 + shifts, 4) and crops.person_ids.tolist() == [3] * (
        1 + shifts
    )
    assert crops.shifted.tolist() == [False, True][: 1 + shifts]
    if shifts:
        assert not torch.equal(crops.boxes[0][0], crops.boxes[0][1])
    # What the student pools from its image, at the size of the teacher's crop.
    seen = roi_align(x["image"][None].float(), [crops.boxes[0]], (256, 128), 1.0, 4, True)
    cut = cut_crops(x["original_image"], crops.original_boxes[0], (256, 128), mirror=is_mirrored(x))
    for ours, theirs in zip(seen, cut):
        assert ours.max() > 100 and theirs.max() > 100
        difference = np.subtract(brightest(ours), brightest(theirs))
        # The cut is of whole pixels of the original: half of one is 1/120 of the box's width.
        assert np.abs(difference).max() < 0.015


def test_without_mirroring_the_teacher_sees_the_original_side(tmp_path):
    x = sample(tmp_path, AUGMENTATIONS["mirrored"])
    assert is_mirrored(x) and not is_mirrored(sample(tmp_path, AUGMENTATIONS["scaled"]))
    image, box = x["original_image"], torch.tensor([BOX])
    mirrored, original = (cut_crops(image, box, (256, 128), mirror=m)[0] for m in (True, False))
    assert torch.equal(mirrored.flip(2), original)
    assert brightest(original)[0] == pytest.approx(0.1, abs=0.015)


def test_a_box_that_was_only_moved_there_and_back_is_exactly_the_annotation(tmp_path):
    sampler = CropSampler(shifts=False, input_size=(256, 128), padding=10.0, limit=20.0)
    for name, places in (("stretched", [0]), ("mirrored", [0]), ("as it is", [0])):
        crops = sampler([sample(tmp_path, AUGMENTATIONS[name])])
        assert crops.original_boxes[0].tolist() == [list(BOX)]
        assert crops.annotations[0].tolist() == places
    # Cut by a random crop it is another box.
    cut = [T.CropTransform(130, 20, 190, 210)]
    crops = sampler([sample(tmp_path, cut)])
    assert crops.annotations[0].tolist() == [-1]
    assert crops.original_boxes[0].tolist() == [[130, 60, 180, 210]]


def test_boxes_that_reach_out_of_the_image_are_cut_at_its_border(tmp_path):
    image = sample(tmp_path, [])["original_image"]
    boxes = torch.tensor([[-50.0, -20.0, 30.0, 40.0], [400.0, 300.0, 450.0, 350.0]])
    assert cut_crops(image, boxes, (16, 8)).shape == (2, 3, 16, 8)
    inside = torch.tensor([[0.0, 0.0, 30.0, 40.0]])
    assert torch.equal(cut_crops(image, boxes, (16, 8))[0], cut_crops(image, inside, (16, 8))[0])
    assert cut_crops(image, boxes[:0], (16, 8)).shape == (0, 3, 16, 8)


def test_the_limit_counts_pixels_of_the_original_image(tmp_path):
    x = sample(tmp_path, AUGMENTATIONS["scaled"])
    sampler = CropSampler(shifts=True, input_size=(256, 128), padding=1e6, limit=8.0)
    shifts = []
    for _ in range(300):
        boxes = sampler([x]).boxes[0]
        shifts.append((boxes[1] - boxes[0])[:2].abs())
    # Half of 8 pixels either way, in an image of twice the size.
    largest = torch.stack(shifts).max(dim=0).values
    assert (largest <= 8).all() and (largest > 7.5).all()
