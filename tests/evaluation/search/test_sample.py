"""The gallery list of few queries and pictures."""

import numpy as np
import pytest

from kd_search.evaluation import flatten_annotations
from kd_search.evaluation.search.sample import GallerySample
from tests.evaluation.search import fake_model
from tests.evaluation.search.test_evaluator import evaluate


@pytest.mark.parametrize("queries, pictures", [(3, 4), (5, 8), (100, 9)])
def test_the_list_has_the_person_in_a_quarter_at_most_and_others(queries, pictures):
    annotations = flatten_annotations(fake_model.make_dataset(num_images=30))
    sample = GallerySample(queries, pictures)
    (arrays,) = sample.lists(annotations).values()
    again = sample.lists(annotations)[sample.name]
    assert all(np.array_equal(arrays[key], again[key], equal_nan=True) for key in arrays)
    assert len(set(arrays["query_ids"])) == min(queries, len(annotations.query_ids))
    offsets = arrays["offsets"]
    for query, start, stop in zip(arrays["query_ids"], offsets, offsets[1:]):
        row = annotations.query_ids.tolist().index(query)
        images, boxes = arrays["images"][start:stop], arrays["boxes"][start:stop]
        assert len(set(images)) == len(images) == pictures
        assert annotations.query_image_index[row] not in images
        shown = 0
        for image, box in zip(images, boxes):
            truth = annotations.ground_truth
            same = (truth.image_index == image) & (
                truth.person_ids == annotations.query_person_ids[row]
            )
            assert same.any() == (not np.isnan(box[0]))
            if same.any():
                assert box.tolist() == truth.boxes[same][0].tolist()
                shown += 1
        assert 1 <= shown <= pictures // 4


def test_a_sample_of_everything_is_the_whole_gallery():
    records = fake_model.make_dataset()
    whole = evaluate(records)
    found = evaluate(records, sample=GallerySample(100, 4 * len(records)))
    assert found["person_search"] == pytest.approx(whole["person_search"])
    assert found["whole_gallery"] == whole["person_search"]
    few = evaluate(records, sample=GallerySample(2, 4))
    assert few["person_search"]["queries"] == 2
    assert few["person_search"]["mAP"] != pytest.approx(whole["person_search"]["mAP"])
    assert few["whole_gallery"] == whole["person_search"]
    assert few["detection"] == whole["detection"]


@pytest.mark.parametrize(
    "sizes, key", [((0, 9), "SAMPLE_QUERIES 0"), ((1, 3), "SAMPLE_PICTURES 3")]
)
def test_a_sample_without_a_query_or_a_match_is_refused_by_its_key(sizes, key):
    with pytest.raises(ValueError, match=key):
        GallerySample(*sizes)
