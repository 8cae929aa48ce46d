"""Random test sets of the sizes of CUHK-SYSU and PRW, and larger ones, for `search_eval`."""

from dataclasses import dataclass, field

import numpy as np

from kd_search.evaluation import Contexts, Detections, Gallery, GroundTruth, Queries

EMBEDDING_DIM = 256
FALSE_ALARMS_PER_IMAGE = 0.8
# Share of the people whom the detector finds.
FOUND = 0.93
# Length of the identity's direction in an embedding, before normalisation, beside noise of length
# 1: people are found, but not all of them first.
SIGNAL = 0.45
CUHK_SIZES = (50, 100, 500, 1000, 2000, 4000)


@dataclass
class SearchSet:
    detections: Detections  # float32
    given: Detections  # on the annotated boxes, scores 1; None if not asked for
    ground_truth: GroundTruth
    queries: Queries
    num_images: int
    cameras: np.ndarray
    galleries: list = field(default_factory=list)
    contexts: Contexts = None
    subsets: dict = field(default_factory=dict)  # name to (Q,) bool


def prw_set(seed=0, num_images=6112, num_queries=2057, num_identities=450, with_given=True):
    """A set of PRW's size: few identities that are in many images, six cameras."""
    rng = np.random.default_rng(seed)
    people_in_image = rng.poisson(4.2, num_images)
    image = np.repeat(np.arange(num_images), people_in_image)
    # A person is in an image at most once: consecutive numbers from a random start.
    place = np.arange(len(image)) - np.repeat(
        np.cumsum(people_in_image) - people_in_image, people_in_image
    )
    person = (rng.integers(num_identities, size=num_images)[image] + place) % num_identities
    person[rng.random(len(person)) >= 0.8] = -1
    asked = rng.choice(np.flatnonzero(person >= 0), num_queries, replace=False)
    return _make(rng, image, person, asked, num_images, num_identities, 6, with_given)


def cuhk_set(seed=0, num_images=6978, num_queries=2900):
    """A set of CUHK-SYSU's size: each query's person is in few images, lists of six sizes."""
    rng = np.random.default_rng(seed)
    people_in_image = rng.poisson(5.86, num_images).clip(min=1)
    image = np.repeat(np.arange(num_images), people_in_image)
    person = np.full(len(image), -1)
    # 5,447 places besides the queries' own: one at least for each query, 1.9 on the average.
    counts = 2 + rng.poisson(5447 / 2900 - 1, num_queries)
    chosen = rng.choice(len(image), int(counts.sum()), replace=False)
    owner = np.repeat(np.arange(num_queries), counts)
    # One box in an image for each person: of those that fell into one image, the first.
    _, first = np.unique(np.stack([owner, image[chosen]]), axis=1, return_index=True)
    person[chosen[first]] = owner[first]
    _, asked = np.unique(person, return_index=True)
    asked = asked[1:]  # the first is -1
    data = _make(rng, image, person, asked, num_images, num_queries, 1)
    queries, truth = data.queries, data.ground_truth
    places = [
        own[truth.image_index[own] != queries.image_index[q]]
        for q, own in enumerate(_rows_of(truth.person_ids, queries.person_ids))
    ]
    for size in CUHK_SIZES:
        images, offsets, filled = [], [0], []
        for q, own in enumerate(places):
            holding = truth.image_index[own]
            others = rng.permutation(num_images)[: size + len(own) + 1]
            others = others[~np.isin(others, np.append(holding, queries.image_index[q]))]
            filled.append(offsets[-1] + np.arange(len(own)))
            # As in the protocol's files, the images that hold the person come first.
            images.append(np.concatenate([holding, others])[:size].astype(np.int32))
            offsets.append(offsets[-1] + len(images[-1]))
        data.galleries.append(
            Gallery.listed(
                f"G{size}",
                np.array(offsets),
                np.concatenate(images),
                truth.boxes[np.concatenate(places)],
                num_images=num_images,
                filled=np.concatenate(filled),
            )
        )
    for name, count in (("occlusion", 187), ("resolution", 290)):
        chosen = np.zeros(len(queries), bool)
        chosen[rng.choice(len(queries), min(count, len(queries) // 2), replace=False)] = True
        data.subsets[name] = chosen
        data.galleries.append(_part(data.galleries[1], name, chosen))
    return data


def _rows_of(values, wanted):
    """Rows of each wanted value."""
    order = np.argsort(values, kind="stable")
    start = np.searchsorted(values[order], wanted, side="left")
    stop = np.searchsorted(values[order], wanted, side="right")
    return [order[a:b] for a, b in zip(start, stop)]


def _part(gallery, name, chosen):
    """The lists of some queries; the others search nothing."""
    counts = np.diff(gallery.offsets)
    entries = np.repeat(chosen, counts)
    inside = entries[gallery.filled]
    return Gallery.listed(
        name,
        np.concatenate([[0], np.cumsum(np.where(chosen, counts, 0))]),
        gallery.images[entries],
        gallery.boxes[inside],
        num_images=int(gallery.images.max()) + 1,
        filled=(np.cumsum(entries) - 1)[gallery.filled[inside]],
        queries=chosen,
    )


def _make(rng, image, person, asked, num_images, num_identities, cameras, with_given=True):
    directions = _normalise(rng.standard_normal((num_identities, EMBEDDING_DIM)))
    boxes = _random_boxes(rng, len(image))
    found = np.flatnonzero(rng.random(len(image)) < FOUND)
    alarms = rng.integers(num_images, size=int(FALSE_ALARMS_PER_IMAGE * num_images))
    size = boxes[found, 2:] - boxes[found, :2]
    shift = rng.normal(0, 0.05, (len(found), 2)) * size
    scores = rng.uniform(0.5, 1, len(found) + len(alarms))
    detected_image = np.concatenate([image[found], alarms])
    order = np.argsort(detected_image, kind="stable")
    detected_boxes = np.concatenate(
        [boxes[found] + np.tile(shift, 2), _random_boxes(rng, len(alarms))]
    )
    detected_person = np.concatenate([person[found], np.full(len(alarms), -1)])
    detections = Detections(
        boxes=detected_boxes[order].astype(np.float32),
        scores=scores[order].astype(np.float32),
        image_index=detected_image[order],
        embeddings=_embeddings(rng, detected_person[order], directions),
    )
    given = None
    if with_given:
        given = Detections(
            boxes.astype(np.float32),
            np.ones(len(boxes), np.float32),
            image,
            _embeddings(rng, person, directions),
        )
    queries = Queries(_embeddings(rng, person[asked], directions), person[asked], image[asked])
    # Two neighbours from the query's image, as far as there are any.
    start = np.searchsorted(detections.image_index, image[asked])
    stop = np.searchsorted(detections.image_index, image[asked], side="right")
    counts = np.minimum(stop - start, 2)
    around = np.repeat(start - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    return SearchSet(
        detections,
        given,
        GroundTruth(boxes, person, image),
        queries,
        num_images,
        rng.integers(cameras, size=num_images),
        contexts=Contexts(np.concatenate([[0], np.cumsum(counts)]), detections.embeddings[around]),
    )


def _embeddings(rng, person, directions):
    rows = np.empty((len(person), EMBEDDING_DIM), np.float32)
    # In parts: a hundred thousand images have half a million of them.
    for first in range(0, len(person), 1 << 16):
        part = person[first : first + (1 << 16)]
        noise = _normalise(rng.standard_normal((len(part), EMBEDDING_DIM)))
        signal = np.where(part[:, None] >= 0, directions[part], 0) * SIGNAL
        rows[first : first + (1 << 16)] = _normalise(noise + signal)
    return rows


def _normalise(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _random_boxes(rng, count):
    """People in a frame of 1920 x 1080: twice to three times as tall as wide."""
    width = rng.uniform(20, 120, count)
    height = width * rng.uniform(2, 3, count)
    x, y = rng.uniform(0, 1800, count), rng.uniform(0, 900, count)
    return np.stack([x, y, x + width, y + height], axis=1)
