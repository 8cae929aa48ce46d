"""Both modes on galleries small enough to be worked out by hand."""

import numpy as np
import pytest

from kd_search.evaluation import (
    Contexts,
    Detections,
    Gallery,
    GalleryProtocol,
    GroundTruth,
    Queries,
    RankingSettings,
    rank_gallery,
)

BOX = (100, 100, 150, 250)
SHIFTED = (105, 100, 155, 250)  # IoU 45 / 55 with BOX
AWAY = (300, 100, 350, 250)
FLAT = (100, 100, 100, 250)  # no area
NOBODY = None
OWN = 9

# The query asks for person 7 in image 9. Detections: (image, box, similarity). List: (image, box of
# the person or NOBODY). Expected by mode: (AP, times the person counts, found, rank of the first).
LISTS = {
    "as the official files are": (
        [(0, BOX, 0.9), (1, AWAY, 0.8), (2, BOX, 0.7)],
        [(0, BOX), (2, BOX), (1, NOBODY)],
        ((1 + 2 / 3) / 2, 2, 2, 1),
        ((1 + 2 / 3) / 2, 2, 2, 1),
    ),
    "an image that is not listed is not searched": (
        [(3, AWAY, 0.9), (0, BOX, 0.8)],
        [(0, BOX)],
        (1, 1, 1, 1),
        (1, 1, 1, 1),
    ),
    "right person, wrong box": (
        [(0, AWAY, 0.9), (0, BOX, 0.8)],
        [(0, BOX)],
        (1 / 2, 1, 1, 2),
        (1 / 2, 1, 1, 2),
    ),
    "two boxes on one person": (
        [(0, BOX, 0.9), (0, SHIFTED, 0.8), (1, BOX, 0.7)],
        [(0, BOX), (1, BOX)],
        ((1 + 2 / 3) / 2, 2, 2, 1),
        ((1 + 2 / 3) / 2, 2, 2, 1),
    ),
    "an image is listed twice": (
        # Found once; compat mode counts it twice, so that even a perfect ranking has AP 1/2.
        [(0, BOX, 0.9), (1, AWAY, 0.8)],
        [(0, BOX), (0, BOX), (1, NOBODY)],
        (1, 1, 1, 1),
        (1 / 2, 2, 1, 1),
    ),
    "a person twice in an image, listed with two boxes": (
        # Compat mode knows the first box only.
        [(0, AWAY, 0.9), (0, BOX, 0.8)],
        [(0, BOX), (0, AWAY)],
        (1, 1, 1, 1),
        (1 / 4, 2, 1, 2),
    ),
    "query in gallery": (
        # The query finds itself; only compat mode lets it.
        [(OWN, BOX, 1.0), (1, AWAY, 0.9), (0, BOX, 0.8)],
        [(OWN, BOX), (0, BOX), (1, NOBODY)],
        (1 / 2, 1, 1, 2),
        ((1 + 2 / 3) / 2, 2, 2, 1),
    ),
    "an empty entry before one with a box": (
        [(0, BOX, 0.9), (1, BOX, 0.8)],
        [(0, BOX), (2, NOBODY), (1, BOX)],
        (1, 2, 2, 1),
        (1, 2, 2, 1),
    ),
    "an image is listed without a box, then with one": (
        # Counts; compat mode looks at the first entry alone, where nobody is.
        [(1, BOX, 0.9), (0, BOX, 0.8)],
        [(1, NOBODY), (0, BOX), (1, BOX)],
        (1, 2, 2, 1),
        (1 / 4, 2, 1, 2),
    ),
    "an image is listed with a box, then without": (
        [(1, BOX, 0.9), (0, AWAY, 0.8)],
        [(1, BOX), (0, NOBODY), (1, NOBODY)],
        (1, 1, 1, 1),
        (1, 1, 1, 1),
    ),
    "all entries are empty": (
        [(0, BOX, 0.9)],
        [(0, NOBODY)],
        (0, 0, 0, 0),
        (0, 0, 0, 0),
    ),
    "a box without area": (
        # Its threshold is 0: in compat mode every detection of the image will do.
        [(1, AWAY, 0.9), (0, AWAY, 0.8)],
        [(0, FLAT), (1, NOBODY)],
        (0, 1, 0, 0),
        (1 / 2, 1, 1, 2),
    ),
    "equal similarities: AP groups them, ranks go by the list": (
        # The list has image 1 last, which leads in compat mode.
        [(0, BOX, 0.9), (1, AWAY, 0.9)],
        [(0, BOX), (1, NOBODY)],
        (1 / 2, 1, 1, 1),
        (1 / 2, 1, 1, 2),
    ),
    "equal similarities, the list the other way round": (
        [(0, AWAY, 0.9), (1, BOX, 0.9)],
        [(1, BOX), (0, NOBODY)],
        (1 / 2, 1, 1, 2),
        (1 / 2, 1, 1, 2),
    ),
    "equal similarities on one person": (
        # The one of them that is right differs, its rank does not: both are as similar.
        [(0, BOX, 0.9), (0, SHIFTED, 0.9)],
        [(0, BOX)],
        (1 / 2, 1, 1, 1),
        (1 / 2, 1, 1, 2),
    ),
    "no detections at all": ([], [(0, BOX)], (0, 1, 0, 0), (0, 1, 0, 0)),
    "an empty list": ([(0, BOX, 0.9)], [], (0, 0, 0, 0), (0, 0, 0, 0)),
}

# The same for the set without lists; cameras of the images by number. The query's is 1.
CAMERA_OF = {0: 2, 1: 2, 3: 1, 4: 1, 5: -1, OWN: 1}
CAMERAS = {
    "all": (
        [(3, BOX, 0.9), (4, AWAY, 0.8), (0, BOX, 0.7)],
        [(3, BOX, 7), (0, BOX, 7)],
        ((1 + 2 / 3) / 2, 2, 2, 1),
    ),
    "cross_camera": (
        # Images 3 and 4 are not searched.
        [(3, BOX, 0.9), (4, AWAY, 0.8), (1, AWAY, 0.75), (0, BOX, 0.7)],
        [(3, BOX, 7), (0, BOX, 7)],
        (1 / 2, 1, 1, 2),
    ),
    "junk_same_camera": (
        # The person's detections in image 3 are gone, both of them; that of image 4 stays.
        [(3, BOX, 0.95), (3, SHIFTED, 0.9), (4, AWAY, 0.8), (0, BOX, 0.7)],
        [(3, BOX, 7), (0, BOX, 7)],
        (1 / 2, 1, 1, 2),
    ),
    "unknown camera, cross_camera": ([(5, BOX, 0.9)], [(5, BOX, 7)], (0, 0, 0, 0)),
    "unknown camera, junk_same_camera": ([(5, BOX, 0.9)], [(5, BOX, 7)], (1, 1, 1, 1)),
    "only in the own camera, cross_camera": ([(3, BOX, 0.9)], [(3, BOX, 7)], (0, 0, 0, 0)),
    "only in the own camera, junk_same_camera": ([(3, BOX, 0.9)], [(3, BOX, 7)], (0, 0, 0, 0)),
}


def run(detections, ground_truth, protocol, contexts=None, k1=10):
    cosines = np.array([row[2] for row in detections], dtype=np.float64)
    queries = Queries(np.array([[1.0, 0.0]]), np.array([7]), np.array([OWN]))
    (result,) = rank_gallery(
        Detections(
            np.array([row[1] for row in detections], dtype=np.float64).reshape(-1, 4),
            np.ones(len(detections)),
            np.array([row[0] for row in detections], dtype=int),
            np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1),
        ),
        GroundTruth(
            np.array([row[1] for row in ground_truth], dtype=np.float64).reshape(-1, 4),
            np.array([row[2] for row in ground_truth], dtype=int),
            np.array([row[0] for row in ground_truth], dtype=int),
        ),
        queries,
        [protocol],
        RankingSettings(k1=k1),
        image_cameras=np.array([CAMERA_OF.get(image, -1) for image in range(10)]),
        contexts=contexts,
    )
    return result.ap[0], result.num_gt[0], result.num_found[0], result.first_hit_rank[0]


def listed(entries):
    return Gallery.listed(
        "G3",
        np.array([0, len(entries)]),
        np.array([image for image, _ in entries], dtype=int),
        np.array([box or [np.nan] * 4 for _, box in entries], dtype=float).reshape(-1, 4),
        num_images=10,
    )


@pytest.mark.parametrize("mode", ["corrected", "compat"])
@pytest.mark.parametrize("case", LISTS)
def test_lists_worked_out_by_hand(case, mode):
    detections, entries, corrected, compat = LISTS[case]
    expected = corrected if mode == "corrected" else compat
    protocol = GalleryProtocol(listed(entries), mode=mode)
    assert run(detections, [], protocol) == pytest.approx(expected)


@pytest.mark.parametrize("case", CAMERAS)
def test_cameras_worked_out_by_hand(case):
    detections, ground_truth, expected = CAMERAS[case]
    protocol = GalleryProtocol(Gallery(), case.rpartition(" ")[2])
    assert run(detections, ground_truth, protocol) == pytest.approx(expected)


def test_compat_mode_cuts_annotated_boxes_to_whole_pixels():
    # Rows 0.99 to 2.5 have 0.01 in common with rows 0 to 1; cut to rows 0 to 2, one of two.
    detections, truth = [(0, (0, 0, 400, 1), 0.9)], [(0, (0, 0.99, 400, 2.5), 7)]
    assert run(detections, truth, GalleryProtocol(Gallery()))[2] == 0
    assert run(detections, truth, GalleryProtocol(Gallery(), mode="compat"))[2] == 1


def around(*vectors):
    rows = np.array(vectors, dtype=float).reshape(-1, 2)
    return Contexts(np.array([0, len(rows)]), rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_context_raises_the_detection_whose_neighbour_is_found_too():
    # Image 0 has the person (0.6) beside the neighbour, image 1 somebody more similar (0.8) alone
    # with a stranger. The matching of image 0 has the neighbour at 1.0, which the person gets.
    neighbour = (0.0, 1.0)
    detections = [(0, BOX, 0.6), (0, AWAY, 0.0), (1, AWAY, 0.8), (1, BOX, 0.99)]
    truth = [(0, BOX, 7)]
    assert run(detections, truth, GalleryProtocol(Gallery()))[3] == 3
    reranked = GalleryProtocol(Gallery(), reranked=True)
    # Image 1: query to 0.99, neighbour to 0.8 (similarity 0.6): the largest is 0.99.
    assert run(detections, truth, reranked, around(neighbour))[3] == 1
    # Only the best detection is looked at again, which is in image 1.
    assert run(detections, truth, reranked, around(neighbour), k1=1)[3] == 3
    # Nobody around: nothing changes.
    assert run(detections, truth, reranked, around())[3] == 3


def test_a_raised_similarity_may_tie():
    # The person gets 1.0 from its neighbour, as similar as the one in image 1, which is given
    # later: corrected mode has it second, compat mode first. Together they enter at precision 1/2.
    detections = [(0, BOX, 0.6), (0, AWAY, 0.0), (1, AWAY, 1.0)]
    truth = [(0, BOX, 7)]
    for mode, rank in (("corrected", 1), ("compat", 2)):
        protocol = GalleryProtocol(Gallery(), mode=mode, reranked=True)
        assert run(detections, truth, protocol, around((0.0, 1.0))) == pytest.approx(
            (0.5, 1, 1, rank)
        )


def test_junk_that_is_raised_is_still_junk():
    # In image 3, of the query's own camera, the query is matched to the person's own detection,
    # and the neighbour, exactly there, would raise it to 1.0.
    detections = [(3, BOX, 0.9), (3, AWAY, 0.0), (4, AWAY, 0.7), (0, BOX, 0.95)]
    truth = [(3, BOX, 7), (0, BOX, 7)]
    protocol = GalleryProtocol(Gallery(), "junk_same_camera", reranked=True)
    assert run(detections, truth, protocol, around((0.0, 1.0))) == pytest.approx((1, 1, 1, 1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": np.array([0, 10])}, "'G': entry 1 of query 0 .*image 10"),
        ({"images": np.array([0.0, 1.0])}, "'G': images .*float64"),
        ({"offsets": np.array([0, 1])}, "'G': offsets"),
        ({"boxes": np.zeros((1, 4))}, r"'G': boxes .*\(1, 4\).*\(2, 4\)"),
        ({"boxes": np.array([[0, 0, 1, 1], [0, 0, np.nan, 1]])}, "'G': .*entry 1"),
    ],
)
def test_lists_that_do_not_fit_are_refused_by_name(change, message):
    arrays = {
        "offsets": np.array([0, 2]),
        "images": np.array([0, 1]),
        "boxes": np.array([[0, 0, 1, 1], [np.nan] * 4]),
    }
    Gallery.listed("G", **arrays, num_images=10)
    with pytest.raises(ValueError, match=message):
        Gallery.listed("G", **{**arrays, **change}, num_images=10)


@pytest.mark.parametrize("change", [{"cameras": "other"}, {"mode": "old"}])
def test_unknown_protocols_are_refused(change):
    ((key, value),) = change.items()
    with pytest.raises(ValueError, match=f"{key} '{value}'"):
        GalleryProtocol(Gallery(), **change)
