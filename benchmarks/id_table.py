"""Update of the identity table against its sequential definition: same bits, several times faster.

Sizes are those of CUHK-SYSU (5532 identities, queue of 5000, 256-d). 64 embeddings of 64 identities
is a batch of ordinary scenes; 320 embeddings of 10 identities is the hard case, in which nearly
every embedding depends on the one before it.
"""

import torch
from torch.nn.functional import normalize

from kd_search.modeling.id_table import IDTable

NUM_IDS, QUEUE_SIZE, EMBEDDING_DIM, MOMENTUM = 5532, 5000, 256, 0.5
LEAST_SPEED_UP = 5
# One update takes less than a millisecond; the seconds of a row are those of one update.
UPDATES_PER_RUN = 50


def run(harness):
    rows = []
    for name, num_embeddings, num_batch_ids, unlabelled_every in (
        ("64 embeddings of 64 ids", 64, 64, 0),
        ("320 embeddings of 10 ids", 320, 10, 0),
        ("320 embeddings of 10 ids, every other one unlabelled", 320, 10, 2),
    ):
        generator = torch.Generator().manual_seed(0)
        embeddings = unit_vectors(num_embeddings, generator)
        ids = torch.randperm(NUM_IDS, generator=generator)[:num_batch_ids]
        person_ids = ids.repeat(num_embeddings // num_batch_ids + 1)[:num_embeddings]
        if unlabelled_every:
            person_ids[::unlabelled_every] = -1
        rows.append(compare(harness, name, embeddings, person_ids, generator))
    return rows


def compare(harness, case, embeddings, person_ids, generator):
    """Time one batch on both sides; both tables change in every update, and must stay equal."""
    table = IDTable(
        num_ids=NUM_IDS,
        queue_size=QUEUE_SIZE,
        embedding_dim=EMBEDDING_DIM,
        momentum=MOMENTUM,
    )
    table.load_rows(unit_vectors(NUM_IDS, generator))
    state = {"rows": table.rows.clone(), "queue": table.queue.clone(), "queue_ptr": 0}

    def ours():
        for _ in range(UPDATES_PER_RUN):
            table.stage(embeddings, person_ids)
            table.commit()

    def reference():
        for _ in range(UPDATES_PER_RUN):
            sequential_update(state, embeddings, person_ids)

    timing = harness.compare(ours, reference)
    equal = (
        torch.equal(table.rows, state["rows"])
        and torch.equal(table.queue, state["queue"])
        and int(table.queue_ptr) == state["queue_ptr"]
    )
    return harness.row(
        f"update, {case}",
        ours_s=timing.ours_s / UPDATES_PER_RUN,
        reference_s=timing.reference_s / UPDATES_PER_RUN,
        equal=equal,
        limit=LEAST_SPEED_UP,
        ratio_is="speed-up",
    )


def sequential_update(state, embeddings, person_ids):
    """The definition, one embedding after the other."""
    rows, queue = state["rows"], state["queue"]
    for embedding, person_id in zip(embeddings, person_ids):
        if person_id >= 0:
            rows[person_id] = MOMENTUM * rows[person_id] + (1 - MOMENTUM) * embedding
            rows[person_id] /= rows[person_id].norm()
        else:
            queue[state["queue_ptr"]] = embedding
            state["queue_ptr"] = (state["queue_ptr"] + 1) % len(queue)


def unit_vectors(count, generator):
    return normalize(torch.randn(count, EMBEDDING_DIM, generator=generator), dim=1)
