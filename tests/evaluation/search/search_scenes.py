"""Small random test sets full of ties, shared by the tests of the search metric."""

import numpy as np
from hypothesis import strategies as st

from kd_search.evaluation import Detections, GroundTruth, Queries

# The 16 corners of the cube of side 1 in four dimensions have unit length, and their products are
# multiples of 1/2: exact in floating point, and equal more often than not.
CORNERS = np.array(np.meshgrid(*[[-0.5, 0.5]] * 4)).reshape(4, 16).T


@st.composite
def test_sets(draw):
    """(detections, ground truth, queries, number of images); integers and ties everywhere."""
    num_images = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_gt, num_detections = draw(st.integers(0, 15)), draw(st.integers(0, 40))
    num_queries = draw(st.integers(1, 5))

    gt_boxes = random_boxes(rng, num_gt)
    gt_images = rng.integers(num_images, size=num_gt)
    images = rng.integers(num_images, size=num_detections)
    boxes = random_boxes(rng, num_detections)
    if num_gt and num_detections:
        # Most detections lie near an annotated box, and often in its image.
        near = rng.random(num_detections) < 0.8
        target = rng.integers(num_gt, size=num_detections)
        moved = gt_boxes[target] + rng.integers(-6, 7, (num_detections, 1))
        boxes = np.where(near[:, None], moved, boxes)
        images = np.where(near & (rng.random(num_detections) < 0.8), gt_images[target], images)
    return (
        Detections(
            boxes=boxes.astype(float),
            scores=rng.choice([0.4, 0.5, 0.9], num_detections, p=[0.2, 0.4, 0.4]),
            image_index=images,
            embeddings=CORNERS[rng.integers(16, size=num_detections)],
        ),
        GroundTruth(gt_boxes.astype(float), rng.integers(-1, 4, num_gt), gt_images),
        Queries(
            CORNERS[rng.integers(16, size=num_queries)],
            rng.integers(-1, 4, num_queries),
            rng.integers(-1, num_images, num_queries),
        ),
        num_images,
    )


def random_boxes(rng, count):
    """(count, 4) XYXY with integer edges; some so small that they demand less overlap."""
    corner = rng.integers(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.integers(4, 40, (count, 2))], axis=1)
