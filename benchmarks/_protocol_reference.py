"""The search protocols as they are defined, query by query, image by image, box by box.

Slow and obvious, written from the text of the protocols (docs/evaluation.md): lists of gallery
images, cameras, re-ranking by context, and the two modes. Nothing of ``kd_search`` is used.
"""

import itertools
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass
class Answer:
    ap: float
    num_gt: int
    num_found: int
    first_hit_rank: int  # 0: none
    matches: list  # of (similarity, image, number in its image, right), the ten best


@dataclass
class Entry:
    """One line of a gallery list."""

    image: int
    box: Optional[list]  # XYXY of the person, None where it is not there


@dataclass
class Scene:
    """A test set as a loop wants it: everything by image."""

    boxes: list  # per image (n, 4) detections
    scores: list  # per image (n,)
    embeddings: list  # per image (n, D) float64
    people: list  # per image list of (person, XYXY box)
    cameras: list  # per image; -1 unknown
    searchable: list  # per image bool


@dataclass
class Asked:
    """One query and the protocol that it is searched with."""

    embedding: np.ndarray
    person: int
    image: int
    entries: Optional[list] = None  # of Entry; None: all images, people from the annotations
    complete: bool = True
    cameras: str = "all"
    mode: str = "corrected"
    context: Optional[list] = None  # other people's embeddings; None: not re-ranked
    k1: int = 10


@dataclass
class _Found:
    image: int
    number: int  # of the detection in its image
    similarity: float
    right: bool = False
    place: tuple = field(default=())  # in the list, for ties


def search_by_text(asked: Asked, scene: Scene, score_thresh=0.5, iou_thresh=0.5) -> Answer:
    compat = asked.mode == "compat"
    images = _images(asked, scene)
    places, num_gt = _places(asked, scene, images)
    junk = _junk(asked, scene, iou_thresh)

    found = []
    for position, image in enumerate(images):
        for number in range(len(scene.boxes[image])):
            if scene.scores[image][number] < score_thresh or (image, number) in junk:
                continue
            similarity = float(scene.embeddings[image][number] @ asked.embedding)
            found.append(_Found(image, number, similarity, place=(position, number)))
    if asked.context:
        _rerank(found, asked, scene, score_thresh)

    num_found = 0
    for image, boxes in places.items():
        here = [entry for entry in found if entry.image == image]
        # Most similar first; of equals the first as given, in compat mode the last.
        here.sort(key=lambda e: (-e.similarity, -e.number if compat else e.number))
        if compat:
            # This order is that of the list, too.
            for order, entry in enumerate(here):
                entry.place = (entry.place[0], order)
        for entry in here:
            if any(
                _matches(scene.boxes[image][entry.number], b, iou_thresh, compat) for b in boxes
            ):
                entry.right = True
                num_found += 1
                break

    # A stable sort: equals in the order of the list; in compat mode read from its end.
    found.sort(key=lambda e: e.place, reverse=compat)
    if not compat:
        found.sort(key=lambda e: (e.image, e.number))
    found.sort(key=lambda e: -e.similarity)
    first = next((rank for rank, entry in enumerate(found, 1) if entry.right), 0)
    ap = 0.0
    for threshold in {entry.similarity for entry in found if entry.right}:
        above = [entry.right for entry in found if entry.similarity >= threshold]
        here = [entry.right for entry in found if entry.similarity == threshold]
        ap += sum(here) / num_gt * sum(above) / len(above)
    matches = [(e.similarity, e.image, e.number, e.right) for e in found[:10]]
    return Answer(ap, num_gt, num_found, first, matches)


def _images(asked: Asked, scene: Scene) -> list:
    """Images to search, each once, in the order of the list."""
    compat = asked.mode == "compat"
    listed = [entry.image for entry in asked.entries or []]
    if not compat:
        listed = [image for image in listed if image != asked.image]
    rest = []
    if asked.complete:
        rest = [g for g in range(len(scene.boxes)) if scene.searchable[g] and g != asked.image]
    images = list(dict.fromkeys(listed + rest))
    if asked.cameras == "cross_camera":
        own = _camera(asked, scene)
        images = [g for g in images if own >= 0 and 0 <= scene.cameras[g] != own]
    return images


def _places(asked: Asked, scene: Scene, images: list) -> tuple:
    """{image: boxes of the person there}, and the number that the recall is measured by."""
    compat = asked.mode == "compat"
    own_camera = _camera(asked, scene)
    places, num_gt = {}, 0
    if asked.entries is None:
        entries = [
            Entry(image, box)
            for image in range(len(scene.people))
            for person, box in scene.people[image]
            if person == asked.person >= 0 and image != asked.image and scene.searchable[image]
        ]
    else:
        entries = asked.entries
    hidden = set()
    for entry in entries:
        if entry.box is None:
            # The first entry of an image says what is right there.
            if compat and entry.image not in places:
                hidden.add(entry.image)
            continue
        if not compat and entry.image == asked.image:
            continue
        camera = scene.cameras[entry.image]
        if asked.cameras == "cross_camera" and not (own_camera >= 0 and 0 <= camera != own_camera):
            continue
        if asked.cameras == "junk_same_camera" and 0 <= camera == own_camera:
            continue
        seen = entry.image in places
        if not seen:
            places[entry.image] = [entry.box]
        elif not compat:
            places[entry.image].append(entry.box)
        num_gt += not seen or (compat and asked.entries is not None)
    return {image: boxes for image, boxes in places.items() if image not in hidden}, num_gt


def _junk(asked: Asked, scene: Scene, iou_thresh: float) -> set:
    """Detections on the person in the query's own camera; neither right nor wrong."""
    if asked.cameras != "junk_same_camera":
        return set()
    junk, camera = set(), _camera(asked, scene)
    entries = asked.entries
    if entries is None:
        entries = [
            Entry(image, box)
            for image in range(len(scene.people))
            for person, box in scene.people[image]
            if person == asked.person >= 0 and scene.searchable[image]
        ]
    for entry in entries:
        if entry.box is None or entry.image == asked.image:
            continue
        if not 0 <= scene.cameras[entry.image] == camera:
            continue
        for number, box in enumerate(scene.boxes[entry.image]):
            if _matches(box, entry.box, iou_thresh, False):
                junk.add((entry.image, number))
    return junk


def _rerank(found: list, asked: Asked, scene: Scene, score_thresh: float) -> None:
    """Context bipartite graph matching, by trying all matchings."""
    top = sorted(found, key=lambda e: (-e.similarity, e.image, e.number))[: asked.k1]
    people = [asked.embedding, *asked.context]
    changes = []
    for image in {entry.image for entry in top}:
        numbers = np.flatnonzero(scene.scores[image] >= score_thresh)
        table = np.array([[float(scene.embeddings[image][n] @ p) for n in numbers] for p in people])
        matching = _matching(table)
        for r, c in matching:
            if r == 0:
                changes.append((image, numbers[c], max(table[r, c] for r, c in matching)))
    for image, number, similarity in changes:
        for entry in found:
            if (entry.image, entry.number) == (image, number):
                entry.similarity = similarity


def _matching(table: np.ndarray) -> list:
    """The one-to-one matching of the largest sum, found by trying all.

    Of several with that sum: the one that gives the first person the earliest of its favourites,
    then the second, and so on; scipy's where there are more people than boxes, or more than four.
    """
    size = min(table.shape)
    rows = range(table.shape[0])
    favourites = [np.argsort(-row, kind="stable").tolist() for row in table]
    totals = {
        tuple(zip(r, c)): sum(table[i, j] for i, j in zip(r, c))
        for r in itertools.combinations(rows, size)
        for c in itertools.permutations(range(table.shape[1]), size)
    }
    best = max(totals.values())
    if len(rows) <= min(4, table.shape[1]):
        optimal = [m for m, total in totals.items() if total > best - 1e-12]
        return list(min(optimal, key=lambda m: [favourites[r].index(c) for r, c in m]))
    chosen = tuple(zip(*(part.tolist() for part in linear_sum_assignment(table, True))))
    assert abs(totals[chosen] - best) < 1e-12
    return list(chosen)


def _camera(asked: Asked, scene: Scene) -> int:
    return scene.cameras[asked.image] if asked.image >= 0 else -1


def _matches(box, wanted, iou_thresh, compat) -> bool:
    if compat:
        wanted = [int(round(float(edge), 6)) for edge in wanted]
    width, height = wanted[2] - wanted[0], wanted[3] - wanted[1]
    threshold = min(iou_thresh, width * height / ((width + 10) * (height + 10)))
    overlap = iou(box, wanted)
    return overlap >= threshold and (compat or overlap > 0)


def iou(a, b) -> float:
    """Intersection over union of two boxes, XYXY."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union
