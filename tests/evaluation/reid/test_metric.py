"""The re-ID metric against its definition, and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._reid_reference import ReIDEntry, search_one_reid_query
from kd_search.data.reid.mars import read_queries, read_tracks
from kd_search.evaluation import similarity
from kd_search.evaluation.reid.metric import (
    AP_RULES,
    DISTRACTOR,
    JUNK,
    METRICS,
    JunkRule,
    ReIDSet,
    evaluate_reid,
)

# Rows of length 1, 2 or 4: products and cosines are exact in binary, so that equal ones are equal.
_POOL = [
    np.array(row, dtype=np.float32)
    for row in (
        *([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [-1, 0, 0, 0], [1, 1, 1, 1], [1, 1, -1, 1]),
        *([2, 2, 2, 2], [-1, 1, -1, 1], [0, 0, 0, 0], [0, 4, 0, 0], [1, -1, -1, -1]),
    )
]


@st.composite
def entries(draw, max_size, ids):
    rows = draw(
        st.lists(
            st.tuples(
                *(st.integers(0, len(_POOL) - 1), st.sampled_from(ids)),
                *(st.integers(-1, 2), st.integers(-1, 6), st.integers(-1, 3)),
            ),
            max_size=max_size,
        )
    )
    return [ReIDEntry(_POOL[e].astype(np.float64), *numbers) for e, *numbers in rows]


def as_set(entries):
    columns = np.array(
        [(e.person_id, e.camera_id, e.frame_id, e.item) for e in entries], dtype=np.int64
    ).reshape(-1, 4)
    embeddings = np.array([e.embedding for e in entries], dtype=np.float32).reshape(-1, 4)
    return ReIDSet(embeddings, *columns.T)


@settings(max_examples=300)
@given(
    queries=entries(6, (-1, 0, 1, 2)),
    gallery=entries(25, (DISTRACTOR, JUNK, 0, 1, 2)),
    metric=st.sampled_from(METRICS),
    ap_rule=st.sampled_from(AP_RULES),
    junk=st.sampled_from([JunkRule(), JunkRule("none"), JunkRule("frames", 2)]),
)
def test_equals_the_definition(queries, gallery, metric, ap_rule, junk):
    result = evaluate_reid(
        *(as_set(queries), as_set(gallery)),
        **{"metric": metric, "ap_rule": ap_rule, "junk": junk, "num_matches": 4},
    )
    for q, query in enumerate(queries):
        expected = search_one_reid_query(
            *(query, gallery),
            **{"metric": metric, "ap_rule": ap_rule, "junk": junk.kind, "junk_frames": junk.frames},
        )
        assert result.num_gt[q] == expected.num_gt
        assert result.first_hit_rank[q] == expected.first_hit_rank
        assert result.ap[q] == pytest.approx(expected.ap, abs=1e-12)
        best = expected.ranking[:4]
        np.testing.assert_allclose(
            result.match_similarity[q][: len(best)], [b[0] for b in best], atol=1e-6
        )
        assert result.match_correct[q][: len(best)].tolist() == [b[1] for b in best]
        assert result.match_index[q][: len(best)].tolist() == [b[2] for b in best]
        assert (result.match_index[q][len(best) :] == -1).all()
        assert np.isnan(result.match_similarity[q][len(best) :]).all()


@settings(max_examples=50)
@given(
    queries=entries(4, (0, 1)),
    gallery=entries(20, (DISTRACTOR, 0, 1)),
    seed=st.integers(0, 1000),
)
def test_order_of_the_gallery_does_not_matter(queries, gallery, seed):
    shuffled = as_set(gallery).select(np.random.default_rng(seed).permutation(len(gallery)))
    a = evaluate_reid(as_set(queries), as_set(gallery))
    b = evaluate_reid(as_set(queries), shuffled)
    np.testing.assert_array_equal(a.first_hit_rank, b.first_hit_rank)
    np.testing.assert_allclose(a.ap, b.ap)


@pytest.mark.parametrize("metric", METRICS)
def test_equals_the_definition_over_many_blocks(metric, monkeypatch):
    monkeypatch.setattr(similarity, "_BLOCK_BYTES", 1)
    monkeypatch.setattr("kd_search.evaluation.reid.metric._QUERIES", 50)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((20, 16))

    def make(count):
        ids = rng.integers(-1, 20, count)
        signal = np.where(ids[:, None] >= 0, directions[ids], 0)
        embeddings = (signal + 2 * rng.standard_normal((count, 16))).astype(np.float32)
        return ReIDSet(embeddings, ids, rng.integers(-1, 4, count))

    queries, gallery = make(130), make(300)
    result = evaluate_reid(queries, gallery, metric=metric)
    plain = [
        [
            ReIDEntry(e.astype(np.float64), int(i), int(c))
            for e, i, c in zip(s.embeddings, s.person_ids, s.camera_ids)
        ]
        for s in (queries, gallery)
    ]
    expected = [search_one_reid_query(query, plain[1], metric=metric) for query in plain[0]]
    np.testing.assert_allclose(result.ap, [e.ap for e in expected], rtol=0, atol=1e-12)
    assert result.first_hit_rank.tolist() == [e.first_hit_rank for e in expected]
    counted = [e.ap for e in expected if e.num_gt]
    assert result.num_queries == len(counted) and result.num_without_match == 130 - len(counted) > 0
    assert result.mean_ap() == pytest.approx(np.mean(counted))


def line(*places):
    """Embeddings on a line, for the Euclidean distance from 0."""
    return np.array(places, dtype=np.float32)[:, None]


def test_average_precision_by_hand():
    queries = ReIDSet(line(0), np.array([7]))
    gallery = ReIDSet(line(1, 2, 3, 4), np.array([DISTRACTOR, 7, 3, 7]))
    exact = evaluate_reid(queries, gallery, metric="euclidean", ap_rule="exact")
    market = evaluate_reid(queries, gallery, metric="euclidean")
    assert exact.ap[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    # Hits at ranks 2 and 4; just above them, precision is 0 of 1 and 1 of 3.
    assert market.ap[0] == pytest.approx(((1 / 2 + 0) / 2 + (2 / 4 + 1 / 3) / 2) / 2)
    assert market.first_hit_rank[0] == 2
    assert market.cmc(3).tolist() == [0, 1, 1]
    assert [market.top_k_accuracy(k) for k in (1, 2, 10)] == [0, 1, 1]


def test_all_alike_earns_the_worst_rank():
    gallery = ReIDSet(np.ones((10, 3)), np.array([5] * 2 + [6] * 8))
    result = evaluate_reid(ReIDSet(np.ones((1, 3)), np.array([5])), gallery, ap_rule="exact")
    assert result.first_hit_rank[0] == 9
    assert result.ap[0] == pytest.approx((1 / 9 + 2 / 10) / 2)


def test_junk_takes_no_place_and_other_people_of_the_camera_do():
    queries = ReIDSet(line(0), np.array([1]), np.array([4]))
    ids, cameras = np.array([1, 2, 1, JUNK, 1]), np.array([4, 4, -1, 2, 4])
    gallery = ReIDSet(line(1, 2, 3, 0, 5), ids, cameras)
    assert evaluate_reid(queries, gallery, metric="euclidean").first_hit_rank[0] == 2
    without = evaluate_reid(queries, gallery, metric="euclidean", junk=JunkRule("none"))
    assert without.first_hit_rank[0] == 1 and without.num_gt[0] == 3


def test_pictures_of_the_same_moment_are_those_at_most_so_many_frames_away():
    query = ReIDSet(line(0), np.array([1]), np.array([4]), np.array([10]))
    frames, cameras = np.array([7, 8, 12, 13, 10, -1]), np.array([4, 4, 4, 4, 5, 4])
    gallery = ReIDSet(line(*range(6)), np.ones(6, int), cameras, frames)
    junk = JunkRule("frames", 2).applies(query, np.zeros(6, int), gallery, np.arange(6))
    assert junk.tolist() == [False, True, True, False, False, False]


def test_queries_without_match_are_counted_and_in_no_mean():
    queries = ReIDSet(line(0, 0, 0), np.array([1, 8, -1]))
    gallery = ReIDSet(line(1, 2), np.array([1, DISTRACTOR]))
    result = evaluate_reid(queries, gallery, metric="euclidean")
    assert (result.num_queries, result.num_without_match) == (1, 2)
    assert result.mean_ap() == result.top_k_accuracy(1) == 1
    nobody = evaluate_reid(queries.select(np.array([1, 2])), gallery, metric="euclidean")
    for mean in (nobody.mean_ap, lambda: nobody.top_k_accuracy(1), lambda: nobody.cmc(5)):
        with pytest.raises(ValueError, match="2 queries"):
            mean()


def test_without_its_queries_the_gallery_of_mars_answers_140_of_them_not(real_data):
    """As the authors of VKD say of MARS (ECCV 2020, their code)."""
    info = str(real_data("mars_annotations") / "mars_info")
    tracks = read_tracks(info, "test")
    _, _, ids, cameras = tracks[tracks[:, 2] != -1].T
    _, _, asked_ids, asked_cameras = tracks[read_queries(info, len(tracks))].T
    is_query = np.zeros(len(tracks), dtype=bool)
    is_query[read_queries(info, len(tracks))] = True
    is_query = is_query[tracks[:, 2] != -1]

    def without_match(kept):
        gallery_ids = np.where(ids > 0, ids, DISTRACTOR)[kept]
        gallery = ReIDSet(np.ones((kept.sum(), 1)), gallery_ids, cameras[kept])
        queries = ReIDSet(np.ones((len(asked_ids), 1)), asked_ids, asked_cameras)
        return evaluate_reid(queries, gallery).num_without_match

    assert len(asked_ids) == 1980
    assert without_match(~is_query) == 140
    assert without_match(np.ones_like(is_query)) == 0


def test_distances_and_cosines_are_reported():
    queries = ReIDSet(np.array([[3.0, 0.0]]), np.array([1]))
    gallery = ReIDSet(np.array([[0.0, 4.0], [6.0, 0.0]]), np.array([1, 1]))
    found = evaluate_reid(queries, gallery, metric="euclidean", num_matches=3)
    np.testing.assert_allclose(found.match_similarity[0, :2], [-3, -5])
    found = evaluate_reid(queries, gallery, num_matches=3)
    np.testing.assert_allclose(found.match_similarity[0, :2], [1, 0], atol=1e-12)
    assert found.match_index[0].tolist() == [1, 0, -1]


def test_mistakes_are_named():
    one = ReIDSet(np.ones((1, 3)), np.array([1]))
    with pytest.raises(ValueError, match="metric 'l1'"):
        evaluate_reid(one, one, metric="l1")
    with pytest.raises(ValueError, match="ap_rule 'voc'"):
        evaluate_reid(one, one, ap_rule="voc")
    with pytest.raises(ValueError, match="length 2, .*of 3"):
        evaluate_reid(one, ReIDSet(np.ones((1, 2)), np.array([1])))
    with pytest.raises(ValueError, match="embeddings .*1 of 1"):
        ReIDSet(np.array([[np.nan]]), np.array([1]))
    with pytest.raises(ValueError, match=r"camera_ids .*\(2,\)"):
        ReIDSet(np.ones((1, 3)), np.array([1]), np.array([1, 2]))
    with pytest.raises(ValueError, match="junk_rule 'time'"):
        JunkRule("time")
