"""Every protocol in both modes against the plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.evaluation import CAMERAS, MODES, Gallery, GalleryProtocol, similarity
from kd_search.evaluation.search.ranking import _block
from tests.evaluation.search import protocol_scenes


def all_protocols(test_set, reranked):
    whole, listed = Gallery(), test_set.gallery()
    galleries = [whole, listed, test_set.gallery("all", complete=True)]
    return [
        GalleryProtocol(gallery, cameras, mode, again)
        for gallery in galleries
        for cameras in CAMERAS
        for mode in MODES
        for again in reranked
    ]


def assert_equal_to_the_text(test_set, protocols, **options):
    results = test_set.rank(protocols, num_matches=10, **options)
    for v, (protocol, result) in enumerate(zip(protocols, results)):
        for q in range(len(test_set.queries)):
            expected = test_set.reference(protocol, q, **options)
            case = (
                protocol.gallery.name,
                protocol.gallery.has_lists,
                protocol.cameras,
                protocol.mode,
                q,
            )
            assert result.num_gt[q] == expected.num_gt, case
            assert result.num_found[q] == expected.num_found, case
            assert result.ap[q] == pytest.approx(expected.ap, abs=1e-9), case
            assert result.first_hit_rank[q] == expected.first_hit_rank, case
            if v == 0:
                count = len(expected.matches)
                np.testing.assert_allclose(
                    result.match_similarity[q, :count], [m[0] for m in expected.matches], atol=1e-9
                )
                assert (result.match_index[q, count:] == -1).all()
                # Right ones are right whatever the order of equals.
                right = {m[1] for m in expected.matches if m[3]}
                index = result.match_index[q, :count][result.match_correct[q, :count]]
                if protocol.mode == "corrected":
                    assert set(test_set.detections.image_index[index]) == right


@settings(max_examples=150)
@given(protocol_scenes.sets(ties=True))
def test_all_protocols_equal_the_text_with_ties(test_set):
    assert_equal_to_the_text(test_set, all_protocols(test_set, [False]))


@settings(max_examples=80)
@given(st.booleans().flatmap(protocol_scenes.sets), st.integers(1, 6))
def test_reranking_equals_the_text(test_set, k1):
    assert_equal_to_the_text(test_set, all_protocols(test_set, [True, False]), k1=k1)


@settings(max_examples=40)
@given(protocol_scenes.sets(ties=True), st.sampled_from(MODES), st.sampled_from(CAMERAS))
def test_a_single_protocol_equals_the_text(test_set, mode, cameras):
    for gallery in (Gallery(), test_set.gallery()):
        protocol = GalleryProtocol(gallery, cameras, mode)
        assert_equal_to_the_text(test_set, [protocol], iou_thresh=0.3)


@settings(max_examples=40)
@given(protocol_scenes.sets(ties=False))
def test_small_blocks_and_small_looks_equal_the_text(test_set):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK_BYTES", 1)
        patch.setattr(similarity, "_MIN_QUERIES", 2)
        patch.setattr(similarity, "CHUNK", 2)
        patch.setattr(similarity, "_FLOAT64_BYTES", 100)
        patch.setattr(_block, "_LOOK_AT", 1)
        patch.setattr(_block, "_SORT_COST", 0)
        patch.setattr(_block, "_BITS", 2)
        patch.setattr(_block, "_BIT_TABLE", np.array([[0, 0], [1, 0], [0, 1], [1, 1]]))
        assert_equal_to_the_text(test_set, all_protocols(test_set, [True]), k1=2)


@settings(max_examples=40)
@given(protocol_scenes.sets(ties=False))
def test_similarities_weighted_by_the_score_equal_the_text(test_set):
    """The definition gets embeddings that are as long as the score."""
    protocols = all_protocols(test_set, [False, True])
    results = test_set.rank(protocols, weight_by_score=True)
    weighted = test_set.detections.embeddings * test_set.detections.scores[:, None]
    test_set.detections.embeddings = weighted
    for protocol, result in zip(protocols, results):
        for q in range(len(test_set.queries)):
            assert result.ap[q] == pytest.approx(test_set.reference(protocol, q).ap, abs=1e-9)
