import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode

from kd_search.data import ImageError, PersonSearchDatasetMapper
from kd_search.data.person_search.coco_json import load_coco_json
from kd_search.data.sampling.order import seeded


def _dicts(made):
    return load_coco_json(str(made.json_file), str(made.images))


@pytest.fixture
def crowd(little_set):
    """One 64 x 48 image: people 5 and 9, a crowd box and an unlabelled person."""
    people = [(9, [2, 4, 10, 20]), (3, [0, 0, 60, 40]), (-1, [30, 8, 12, 30]), (5, [44, 0, 20, 48])]
    made = little_set().add_image("c2s1_000007.png", people)
    made.content["annotations"][1]["iscrowd"] = 1
    record = _dicts(made.write())[0]
    record["queries"] = [
        {"query_id": 4, "bbox": [44.0, 0.0, 64.0, 48.0], "person_id": 1},
        {"query_id": 2, "bbox": [2.0, 4.0, 12.0, 24.0], "person_id": 2},
    ]
    return record


def test_training_samples_hold_image_boxes_classes_and_identities(crowd):
    mapper = PersonSearchDatasetMapper(augmentations=[], image_format="RGB")
    sample = mapper(crowd)
    assert sample["image"].shape == (3, 48, 64) and sample["image"].dtype == torch.uint8
    instances = sample["instances"]
    assert instances.image_size == (48, 64)
    assert instances.gt_boxes.tensor.tolist() == [[2, 4, 12, 24], [30, 8, 42, 38], [44, 0, 64, 48]]
    assert instances.gt_person_ids.tolist() == [2, -1, 1]
    assert instances.gt_person_ids.dtype == instances.gt_classes.dtype == torch.int64
    assert instances.gt_classes.tolist() == [0, 0, 0]
    assert (sample["camera_id"], sample["frame_id"], sample["image_id"]) == (2, 7, 1)
    assert not {"annotations", "queries", "query_boxes", "gallery_boxes"} & set(sample)


def test_people_remember_their_place_among_the_annotations_crowds_included(crowd):
    mapper = PersonSearchDatasetMapper(augmentations=[T.RandomFlip(prob=1.0)], with_original=True)
    instances = mapper(crowd)["instances"]
    assert instances.gt_annotations.tolist() == [0, 2, 3]
    annotated = [crowd["annotations"][place]["bbox"] for place in (0, 2, 3)]
    assert instances.gt_original_boxes.tolist() == annotated


def test_class_ids_are_those_of_the_data(crowd):
    crowd["annotations"][0]["category_id"] = 3
    sample = PersonSearchDatasetMapper(augmentations=[])(crowd)
    assert sample["instances"].gt_classes.tolist() == [3, 0, 0]


def test_boxes_in_other_modes_are_understood(crowd):
    crowd["annotations"][0].update(bbox=[2, 4, 10, 20], bbox_mode=BoxMode.XYWH_ABS)
    sample = PersonSearchDatasetMapper(augmentations=[])(crowd)
    assert sample["instances"].gt_boxes.tensor[0].tolist() == [2, 4, 12, 24]


def test_flipping_turns_pixels_and_boxes_alike_and_keeps_identities(crowd):
    plain = PersonSearchDatasetMapper(augmentations=[])(crowd)
    flipped = PersonSearchDatasetMapper(augmentations=[T.RandomFlip(prob=1.0)])(crowd)
    assert torch.equal(flipped["image"], plain["image"].flip(2))
    boxes = plain["instances"].gt_boxes.tensor
    mirrored = torch.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], 1)
    assert torch.equal(flipped["instances"].gt_boxes.tensor, mirrored)
    assert flipped["instances"].gt_person_ids.tolist() == [2, -1, 1]


def test_transforms_survive_a_round_trip(crowd):
    resize, flip = T.ResizeTransform(48, 64, 31, 97), T.HFlipTransform(97)
    sample = PersonSearchDatasetMapper(augmentations=[resize, flip])(crowd)
    boxes = sample["instances"].gt_boxes.tensor.numpy().astype(np.float64)
    restored = T.TransformList([flip, T.ResizeTransform(31, 97, 48, 64)]).apply_box(boxes)
    kept = [a["bbox"] for a in crowd["annotations"] if not a["iscrowd"]]
    assert np.allclose(restored, kept, atol=1e-4)


def test_boxes_with_nothing_left_are_dropped_with_their_identities(crowd):
    sample = PersonSearchDatasetMapper(augmentations=[T.CropTransform(35, 0, 29, 48)])(crowd)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[0, 8, 7, 38], [9, 0, 29, 48]]
    assert sample["instances"].gt_person_ids.tolist() == [-1, 1]
    assert sample["instances"].gt_classes.tolist() == [0, 0]


def test_an_image_without_people_has_empty_instances(street):
    record = _dicts(street)[7]
    instances = PersonSearchDatasetMapper(augmentations=[])(record)["instances"]
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_person_ids.shape == (0,)
    assert instances.gt_person_ids.dtype == torch.int64


def test_test_samples_hold_queries_in_the_transformed_image_and_no_instances(crowd, data_cfg):
    sample = PersonSearchDatasetMapper(data_cfg(), False)(crowd)
    assert sample["image"].shape == (3, 24, 32)
    assert (sample["height"], sample["width"]) == (48, 64)
    assert sample["query_ids"] == [4, 2]
    assert sample["query_boxes"].tolist() == [[22, 0, 32, 24], [1, 2, 6, 12]]
    assert sample["query_boxes"].dtype == torch.float32
    assert not {"instances", "gallery_boxes", "annotations", "queries"} & set(sample)


def test_test_samples_without_queries_say_nothing_of_queries(crowd, data_cfg):
    del crowd["queries"]
    assert not {"query_boxes", "query_ids"} & set(
        PersonSearchDatasetMapper(data_cfg(), False)(crowd)
    )


def test_gallery_boxes_are_all_boxes_but_crowds(crowd, street, data_cfg):
    mapper = PersonSearchDatasetMapper(data_cfg(), False, with_gt_boxes=True)
    boxes = mapper(crowd)["gallery_boxes"]
    assert boxes.tolist() == [[1, 2, 6, 12], [15, 4, 21, 19], [22, 0, 32, 24]]
    assert mapper(_dicts(street)[7])["gallery_boxes"].shape == (0, 4)


def test_the_mapper_leaves_the_dict_as_it_was(crowd, data_cfg):
    before = repr(crowd)
    PersonSearchDatasetMapper(data_cfg(), True)(crowd)
    PersonSearchDatasetMapper(data_cfg(), False)(crowd)
    assert repr(crowd) == before


def test_multi_scale_flip_and_crop_follow_the_config(data_cfg):
    def kinds(*overrides, is_train=True):
        mapper = PersonSearchDatasetMapper(data_cfg(*overrides), is_train)
        return [type(a).__name__ for a in mapper.augmentations.augs]

    assert kinds() == ["ResizeShortestEdge", "RandomFlip"]
    assert kinds("INPUT.RANDOM_FLIP", "none") == ["ResizeShortestEdge"]
    assert kinds("INPUT.CROP.ENABLED", True)[0] == "RandomCrop"
    assert kinds("INPUT.CROP.ENABLED", True, is_train=False) == ["ResizeShortestEdge"]


def test_sizes_and_flips_vary_in_training(crowd, data_cfg):
    mapper = PersonSearchDatasetMapper(data_cfg(), True)
    sizes, firsts = set(), set()
    for i in range(20):
        with seeded(i):
            sample = mapper(crowd)
        sizes.add(sample["image"].shape[1])
        firsts.add(bool(sample["instances"].gt_boxes.tensor[0, 0] < sample["image"].shape[2] / 2))
    assert sizes == {24, 32, 40} and firsts == {True, False}


def test_random_crops_keep_boxes_and_identities_aligned(crowd):
    mapper = PersonSearchDatasetMapper(augmentations=[T.RandomCrop("absolute", (40, 24))])
    originals = {2: [2, 4, 12, 24], 1: [44, 0, 64, 48], -1: [30, 8, 42, 38]}
    seen = set()
    for i in range(30):
        with seeded(i):
            instances = mapper(crowd)["instances"]
        for row, box in zip(instances.gt_person_ids.tolist(), instances.gt_boxes.tensor.tolist()):
            x0, y0, x1, y1 = originals[row]
            assert 0 < box[2] - box[0] <= x1 - x0 and 0 < box[3] - box[1] <= y1 - y0
            seen.add(row)
    assert seen == set(originals)


def test_a_wrong_size_in_the_annotations_is_refused_naming_the_file(crowd):
    crowd["width"] = 65
    with pytest.raises(SizeMismatchError, match="c2s1_000007.png"):
        PersonSearchDatasetMapper(augmentations=[])(crowd)


def test_unreadable_and_too_large_images_are_refused_naming_the_file(crowd, data_cfg):
    mapper = PersonSearchDatasetMapper(data_cfg("INPUT.MAX_IMAGE_PIXELS", 3000), True)
    with pytest.raises(ImageError, match="c2s1_000007.png: 64 x 48 pixels"):
        mapper(crowd)
    crowd["file_name"] += ".gone"
    with pytest.raises(ImageError, match="c2s1_000007.png.gone"):
        mapper(crowd)


def test_ground_truth_gallery_boxes_are_not_for_training():
    with pytest.raises(ValueError, match="with_gt_boxes"):
        PersonSearchDatasetMapper(augmentations=[], with_gt_boxes=True)
