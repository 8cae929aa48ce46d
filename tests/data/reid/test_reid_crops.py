import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from kd_search.data import get_id_map, register_person_search_coco
from kd_search.data.reid import (
    CropMapper,
    get_reid_samples,
    is_reid,
    register_named_crops,
    reid_crops_of,
)


@pytest.fixture
def people(little_set, registry):
    """A person search set of three frames; ``people(test=True)`` has queries."""

    def make(test=False):
        made = little_set("test" if test else "train")
        made.add_image("c1s1_000001.png", [(30, [2, 3, 10, 20]), (-1, [30, 5, 12, 30])])
        made.add_image("c2s1_000002.png", [(7, [1, 1, 8, 9]), (30, [20.5, 4, 11, 21])])
        made.add_image("c3s1_000003.png", [(7, [3, 3, 9, 9])], in_gallery=not test)
        made.content["annotations"].append(
            {"image_id": 2, "category_id": 1, "bbox": [1, 1, 5, 5], "person_id": 30, "iscrowd": 1}
        )
        made.write()
        name = "my_test" if test else "my_train"
        registry.extend([name, f"{name}_crops"])
        if test:
            lines = ["30 2 3 10 20 c1s1_000001", "7 3 3 9 9 c3s1_000003", "30 1 2 9 9 c3s1_000003"]
            made.write_queries(*lines)
        query_info = str(made.query_info) if test else None
        register_person_search_coco(name, str(made.json_file), str(made.images), query_info)
        return name

    return make


def test_crops_have_the_rows_of_the_person_search_set(people):
    name = people()
    assert reid_crops_of(name) == reid_crops_of(name) == "my_train_crops"
    samples, id_map = get_reid_samples("my_train_crops")
    assert id_map == get_id_map(name) and id_map.to_list() == [7, 30]
    assert is_reid("my_train_crops") and not is_reid(name)
    found = [(s["person_id"], s["camera_id"], s["boxes"], s["role"]) for s in samples]
    assert found == [
        (1, 1, [[2, 3, 12, 23]], "train"),
        (0, 2, [[1, 1, 9, 10]], "train"),
        (1, 2, [[20.5, 4, 31.5, 25]], "train"),
        (0, 3, [[3, 3, 12, 12]], "train"),
    ]
    assert MetadataCatalog.get("my_train_crops").input_size == (256, 128)


def test_queries_are_their_boxes_and_people_without_identity_are_distractors(people):
    samples, id_map = get_reid_samples(reid_crops_of(people(test=True)))
    found = [(s["person_id"], s["camera_id"], s["role"], s["boxes"][0][:2]) for s in samples]
    assert found == [
        # Annotated in a gallery image: in both.
        (1, 1, "both", [2, 3]),
        (-1, 1, "gallery", [30, 5]),
        (0, 2, "gallery", [1, 1]),
        (1, 2, "gallery", [20.5, 4]),
        # The last image is not in the gallery.
        (0, 3, "query", [3, 3]),
        (1, 3, "query", [1, 2]),
    ]


def test_crops_are_cut_from_the_original_images(people):
    samples, _ = get_reid_samples(reid_crops_of(people()))
    mapper = CropMapper(is_train=False, size=(9, 8), image_format="RGB")
    sample = samples[1]
    pixels = mapper(sample["file_names"][0], sample["boxes"][0])
    image = Image.open(sample["file_names"][0]).crop((1, 1, 9, 10))
    assert pixels.shape == (3, 9, 8)
    # 8 x 9 pixels at their own size: nothing is resampled.
    assert pixels.permute(1, 2, 0).numpy().tobytes() == image.tobytes()


def test_named_crops_are_registered_and_nothing_else(people, registry):
    name = people()
    names = [f"{name}_crops", "no_such_set_crops", "market1501_train", name]
    registry.append("no_such_set_crops")
    register_named_crops(names)
    assert f"{name}_crops" in DatasetCatalog.list()
    assert "no_such_set_crops" not in DatasetCatalog.list()
    register_named_crops([f"{name}_crops_crops"])
    assert f"{name}_crops_crops" not in DatasetCatalog.list()


def test_crops_of_one_camera_are_not_all_junk(people, little_set, registry):
    made = little_set("one_camera")
    made.add_image("c6s1_000001.png", [(30, [2, 3, 10, 20])])
    made.add_image("c6s1_000002.png", [(30, [3, 3, 10, 20])])
    made.write()
    registry.extend(["one_camera_train", "one_camera_train_crops"])
    register_person_search_coco("one_camera_train", str(made.json_file), str(made.images))
    for source, rule in ((people(), "camera"), ("one_camera_train", "none")):
        name = reid_crops_of(source)
        get_reid_samples(name)
        assert MetadataCatalog.get(name).junk_rule == rule
