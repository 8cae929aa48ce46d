"""CUHK-SYSU's own TestG100.mat: what its oddities cost a perfect model, in each mode."""

import numpy as np

from kd_search.data.person_search.search_protocol import read_search_protocol
from kd_search.evaluation import (
    Detections,
    Gallery,
    GalleryProtocol,
    GroundTruth,
    Queries,
    rank_gallery,
)


def test_a_perfect_model_on_the_real_lists(real_data):
    folder = real_data("cuhk_sysu_mini") / "annotation" / "test" / "train_test"
    protocol = read_search_protocol(str(folder / "TestG100.mat"), "TestG100")
    names, images = np.unique(protocol.entry_images, return_inverse=True)
    number = {name.decode(): image for image, name in enumerate(names)}
    boxes = protocol.match_boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    entries = protocol.match_entries
    owner = np.searchsorted(protocol.offsets, entries, side="right") - 1
    count = len(protocol.query_boxes)
    assert (count, len(boxes), len(names)) == (2900, 5447, 6978)

    # A detector that finds exactly the listed people, and embeddings that know who they are.
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((count, 32))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    places, first = np.unique(
        np.column_stack([owner, images[entries], boxes]), axis=0, return_index=True
    )
    detections = Detections(
        boxes[first], np.ones(len(first)), images[entries][first], directions[owner[first]]
    )
    own = np.array([number.get(name, -1) for name in protocol.query_images])
    gallery = Gallery.listed(
        "G100", protocol.offsets, images, boxes, num_images=len(names), filled=entries
    )
    corrected, compat = rank_gallery(
        detections,
        GroundTruth(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, int)),
        Queries(directions, np.arange(count), own),
        [GalleryProtocol(gallery, mode="corrected"), GalleryProtocol(gallery, mode="compat")],
    )
    assert (corrected.num_gt > 0).all()
    assert (corrected.ap == 1).sum() == count - 3  # three see the person twice in an image
    # One listed image less to find, for the four queries with a repeated one.
    assert compat.num_gt.sum() == 5447 and (compat.num_found < compat.num_gt).sum() == 4
    repeated = np.flatnonzero(compat.num_found < compat.num_gt)
    assert (compat.num_gt[repeated] - compat.num_found[repeated] == 1).all()
    assert (compat.ap[repeated] < 1).all() and (compat.ap == 1).sum() == count - 4
    # Their own image is listed for two queries; only compat mode counts it.
    assert corrected.num_gt.sum() == 5447 - 4 - 2
    assert (compat.num_images - corrected.num_images).sum() == 2
    assert compat.first_hit_rank.max() == corrected.first_hit_rank.max() == 1
