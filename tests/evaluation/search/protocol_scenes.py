"""Random small test sets for every protocol: lists with all their oddities, cameras, contexts."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from benchmarks._protocol_reference import Asked, Entry, Scene, search_by_text
from kd_search.evaluation import (
    Contexts,
    Detections,
    Gallery,
    GroundTruth,
    Queries,
    RankingSettings,
    rank_gallery,
)
from kd_search.evaluation.search.galleries import complete_gallery
from tests.evaluation.search.search_scenes import CORNERS, random_boxes


@dataclass
class Set:
    detections: Detections
    ground_truth: GroundTruth
    queries: Queries
    entries: list  # per query a list of Entry
    cameras: np.ndarray
    searchable: np.ndarray
    contexts: Contexts

    def gallery(self, name="G4", complete=False):
        flat = [entry for entries in self.entries for entry in entries]
        listed = Gallery.listed(
            name,
            np.cumsum([0] + [len(entries) for entries in self.entries]),
            np.array([entry.image for entry in flat], dtype=int),
            np.array([entry.box or [np.nan] * 4 for entry in flat], dtype=float).reshape(-1, 4),
            num_images=len(self.cameras),
        )
        return complete_gallery(listed, name) if complete else listed

    def scene(self):
        images = range(len(self.cameras))
        rows = [np.flatnonzero(self.detections.image_index == g) for g in images]
        people = [np.flatnonzero(self.ground_truth.image_index == g) for g in images]
        return Scene(
            [self.detections.boxes[r] for r in rows],
            [self.detections.scores[r] for r in rows],
            [self.detections.embeddings[r].astype(float) for r in rows],
            [
                [(self.ground_truth.person_ids[i], self.ground_truth.boxes[i]) for i in own]
                for own in people
            ],
            self.cameras.tolist(),
            self.searchable.tolist(),
        )

    def rank(self, protocols, **settings):
        return rank_gallery(
            self.detections,
            self.ground_truth,
            self.queries,
            protocols,
            RankingSettings(**settings),
            image_cameras=self.cameras,
            searchable=self.searchable,
            contexts=self.contexts,
        )

    def reference(self, protocol, query, k1=10, **thresholds):
        own = self.contexts.offsets[query : query + 2]
        asked = Asked(
            self.queries.embeddings[query].astype(float),
            int(self.queries.person_ids[query]),
            int(self.queries.image_index[query]),
            self.entries[query] if protocol.gallery.has_lists else None,
            protocol.gallery.complete,
            protocol.cameras,
            protocol.mode,
            list(self.contexts.embeddings[slice(*own)].astype(float))
            if protocol.reranked
            else None,
            k1,
        )
        return search_by_text(asked, self.scene(), **thresholds)


@st.composite
def sets(draw, ties=True):
    """A test set; with ``ties`` all similarities are multiples of 1/2."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_images, num_queries = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    num_gt, num_detections = draw(st.integers(0, 12)), draw(st.integers(0, 25))

    def embeddings(count):
        if ties:
            return CORNERS[rng.integers(16, size=count)]
        rows = rng.standard_normal((count, 5))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    gt_boxes = random_boxes(rng, num_gt).astype(float)
    gt_boxes += rng.choice([0, 0.25, 0.75], (num_gt, 1))
    gt_images = rng.integers(num_images, size=num_gt)
    persons = rng.integers(-1, 3, num_gt)
    images = rng.integers(num_images, size=num_detections)
    boxes = random_boxes(rng, num_detections).astype(float)
    if num_gt and num_detections:
        near = rng.random(num_detections) < 0.8
        target = rng.integers(num_gt, size=num_detections)
        boxes = np.where(near[:, None], gt_boxes[target] + rng.integers(-5, 6, (1, 1)), boxes)
        images = np.where(near, gt_images[target], images)
    order = np.argsort(images, kind="stable")
    asked = rng.integers(-1, 3, num_queries)
    entries = []
    for query in range(num_queries):
        listed = []
        for image in rng.integers(num_images, size=rng.integers(0, 8)):
            there = np.flatnonzero((gt_images == image) & (persons == asked[query]))
            box = None
            if len(there) and asked[query] >= 0 and rng.random() < 0.9:
                box = gt_boxes[rng.choice(there)].tolist()
                if rng.random() < 0.1:
                    box[2] = box[0]  # no area
            listed.append(Entry(int(image), box))
        if rng.random() < 0.6:
            listed.sort(key=lambda entry: entry.box is None)  # as the official files are
        entries.append(listed)
    around = rng.integers(0, 3, num_queries)
    return Set(
        Detections(
            boxes[order],
            rng.choice([0.4, 0.5, 0.9], num_detections, p=[0.2, 0.4, 0.4]),
            images[order],
            embeddings(num_detections),
        ),
        GroundTruth(gt_boxes, persons, gt_images),
        Queries(embeddings(num_queries), asked, rng.integers(-1, num_images, num_queries)),
        entries,
        rng.integers(-1, 2, num_images),
        rng.random(num_images) < 0.9,
        Contexts(np.concatenate([[0], np.cumsum(around)]), embeddings(int(around.sum()))),
    )
