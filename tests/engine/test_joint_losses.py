"""Training on 2 and 3 ranks against one process with the same batches.

The test runs this file as a script in each process.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from gloo import join_group, leave_group, start_ranks
from tiny_reid import reid_cfg
from torch import nn
from torch.nn import functional as F

from kd_search.distillation import Companion, Distiller, FrozenTeacher
from kd_search.distillation.methods.dkd import (
    IdentityProbabilityTerm,
    PairRelationTerm,
    TripletRelationTerm,
)
from kd_search.distillation.methods.id_table import IDTableTerm
from kd_search.distillation.methods.vkd import DistancePreservationTerm, ViewLogitsTerm
from kd_search.engine import TrainStep
from kd_search.engine.parallel import id_tables, wrap_model
from kd_search.modeling import IDTable, ReIDBranch
from kd_search.modeling.roi_heads.reid_branch import CosineClassifier
from kd_search.outputs import (
    CROP_PARTS,
    IDENTITY_PARTS,
    CropOutputs,
    Crops,
    IdentityOutputs,
    IdentitySpec,
    ModelOutputs,
    ModelSpec,
)
from kd_search.utils.comm import unwrap_model

NUM_FEATURES, DIM, THEIR_DIM, NUM_IDS, LR = 5, 4, 6, 5, 0.05
#: People of the six images of every step: two ranks have three images each, three ranks two.
PEOPLE = [
    [2, 0, 3, 1, 0, 0],
    [0, 0, 1, 2, 4, 1],
    [1, 1, 1, 1, 1, 1],
    [3, 2, 1, 1, 2, 1],
    [0, 0, 0, 0, 0, 0],
    [0, 4, 2, 2, 0, 3],
]
#: {step: (image, what happens there)}.
FAULTS = {2: (5, "stop"), 3: (0, "nan")}


class Student(nn.Module):
    """Linear head on features of the images, and a re-ID branch on features of the people."""

    device = torch.device("cpu")

    def __init__(self, gathers):
        super().__init__()
        self.detect = nn.Linear(NUM_FEATURES, 1)
        self.reid = ReIDBranch(
            head=nn.Linear(NUM_FEATURES, DIM),
            id_table=IDTable(num_ids=NUM_IDS, queue_size=3, embedding_dim=DIM),
            classifier=CosineClassifier(DIM, NUM_IDS),
            gather_over_ranks=gathers,
        )

    def spec(self):
        return spec(DIM, IDENTITY_PARTS | CROP_PARTS)

    def forward_train(self, batch):
        if any(x["fault"] == "stop" for x in batch):
            raise FloatingPointError("as Detectron2's RPN")
        people = torch.cat([x["people"] for x in batch])
        ids = torch.cat([x["person_ids"] for x in batch])
        # Detectron2's own losses are means over a rank's images; all ranks have as many.
        images = torch.stack([x["image"] for x in batch])
        embeddings = F.normalize(self.reid(people), dim=1)
        losses = {"loss_detect": self.detect(images).square().mean()}
        losses.update(self.reid.losses(embeddings, ids))
        logits = self.reid.identity_logits(embeddings)
        return losses, ModelOutputs(identities=IdentityOutputs(embeddings, ids, logits))

    def embed_crops(self, outputs, crops):
        identities = outputs.identities
        return CropOutputs(crops, 2 * identities.embeddings, identities.logits)


class Oracle(nn.Module):
    """A teacher whose embeddings and logits come with the images."""

    def spec(self):
        return spec(THEIR_DIM, IDENTITY_PARTS)

    def forward_teacher(self, batch, parts):
        embeddings, logits = oracle_of(batch)
        return ModelOutputs(identities=IdentityOutputs(embeddings, logits=logits))


class CropOracle(Companion):
    """A re-ID teacher, likewise."""

    provides = CROP_PARTS

    def extend_spec(self, teacher):
        return replace(teacher, crops=teacher.identities)

    def before_student(self, batch):
        ids, shifted = (torch.cat([x[key] for x in batch]) for key in ("person_ids", "shifted"))
        return CropOutputs(Crops([], ids, shifted), *oracle_of(batch))

    def after_student(self, network, student, teacher, early):
        student = replace(student, crops=network.embed_crops(student, early.crops))
        return student, replace(teacher, crops=early)


def spec(embedding_dim, parts):
    identities = IdentitySpec(embedding_dim, NUM_IDS)
    return ModelSpec({}, 1, parts, identities=identities, crops=identities)


def oracle_of(batch):
    rows = torch.cat([x["oracle"] for x in batch])
    return rows[:, :THEIR_DIM], rows[:, THEIR_DIM:]


def image(step, number, fault):
    generator = torch.Generator().manual_seed(100 * step + number)
    count = PEOPLE[step][number]
    bad = fault and FAULTS.get(step, (None,))[0] == number
    people = torch.randn(count, NUM_FEATURES, generator=generator)
    kind = FAULTS[step][1] if bad else ""
    return {
        "image": torch.randn(NUM_FEATURES, generator=generator),
        "people": people * float("nan") if kind == "nan" else people,
        "person_ids": torch.randint(-1, NUM_IDS, (count,), generator=generator),
        "shifted": torch.rand(count, generator=generator) < 0.3,
        "oracle": torch.randn(count, THEIR_DIM + NUM_IDS, generator=generator),
        "fault": kind,
        "file_name": f"{number}.jpg",
    }


def distiller(gathers):
    table = IDTable(num_ids=NUM_IDS, queue_size=2, embedding_dim=DIM)
    terms = {
        "IdentityProbabilityTerm": IdentityProbabilityTerm(),
        "PairRelationTerm": PairRelationTerm(loss_weight=10.0),
        "TripletRelationTerm": TripletRelationTerm(projection=True),
        "ViewLogitsTerm": ViewLogitsTerm(),
        "DistancePreservationTerm": DistancePreservationTerm(loss_weight=1e-2),
        "IDTableTerm": IDTableTerm(table=table, gather_over_ranks=gathers),
    }
    return Distiller(
        student=Student(gathers),
        terms=nn.ModuleDict(terms),
        teacher=FrozenTeacher(Oracle(), IDENTITY_PARTS),
        companions={"ReIDTeacher": CropOracle()},
        gather_over_ranks=gathers,
    )


def all_terms(gathers=True, fault=False):
    """All terms and all losses on people in one model; six images a step."""
    batches = [[image(step, i, fault) for i in range(6)] for step in range(len(PEOPLE))]
    return distiller(gathers), batches


def reid_network(gathers=True):
    """The network that DKD and VKD train: nine crops a step; two ranks have four and five."""
    network = build_model(
        reid_cfg("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.GATHER_OVER_RANKS", gathers)
    )
    # Statistics of the batch are those of each rank.
    network.neck = nn.Identity()
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            # Of random weights: features would grow from layer to layer.
            module.running_var.fill_(4.0)
    generator = torch.Generator().manual_seed(3)
    ids = [[0, 1, 0, 2, 1, 3, 3, -1, 0], [4, 4, 2, 2, 4, -1, -1, 0, 1], [1] * 8 + [2]]
    batches = [
        [
            {"frames": 255 * torch.rand(2, 3, 32, 16, generator=generator), "person_id": i}
            for i in of_step
        ]
        for of_step in ids
    ]
    return network, batches


SCENARIOS = {
    "all_terms": all_terms,
    "with_fault": lambda: all_terms(fault=True),
    "each_its_own": lambda: all_terms(gathers=False),
    "reid_network": reid_network,
    "reid_each_its_own": lambda: reid_network(gathers=False),
}


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def train(name):
    """Train on this rank's part of every batch; returns losses of the steps, weights and log."""
    torch.manual_seed(0)
    model, batches = SCENARIOS[name]()
    model = wrap_model(model)
    step = TrainStep(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9),
        seed=1,
    )
    messages = Messages()
    logger = logging.getLogger("kd_search.engine.train_step")
    logger.addHandler(messages)
    losses = []
    rank, size = comm.get_rank(), comm.get_world_size()
    with EventStorage() as storage:
        for iteration, batch in enumerate(batches):
            own = batch[len(batch) * rank // size : len(batch) * (rank + 1) // size]
            taken = step.run(own, iteration)
            if comm.is_main_process() and taken:
                losses.append({k: v[0] for k, v in storage.latest().items() if "loss" in k})
    logger.removeHandler(messages)
    network = unwrap_model(model)
    return {
        "losses": losses,
        "weights": {k: p.detach() for k, p in network.named_parameters()},
        "tables": {k: t.rows for k, t in id_tables(network).items()},
        "skipped": step.skipped_steps,
        "log": messages.texts,
    }


def run_rank(rank, num_ranks, folder):
    join_group(rank, num_ranks, folder)
    result = {name: train(name) for name in SCENARIOS}
    torch.save(result, Path(folder) / f"{num_ranks}_{rank}.pt")
    leave_group()


@pytest.fixture(scope="module")
def alone():
    return {name: train(name) for name in SCENARIOS}


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    start_ranks(__file__, request.param, folder)
    return [torch.load(folder / f"{request.param}_{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", ["all_terms", "with_fault", "reid_network"])
def test_losses_and_weights_are_those_of_one_process(alone, ranks, name):
    expected = alone[name]
    assert len(ranks[0][name]["losses"]) == len(expected["losses"]) >= 3
    for found, wanted in zip(ranks[0][name]["losses"], expected["losses"]):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    for rank in ranks:
        for kind in ("weights", "tables"):
            assert rank[name][kind].keys() == expected[kind].keys()
            for key, value in expected[kind].items():
                torch.testing.assert_close(rank[name][kind][key], value, rtol=1e-5, atol=1e-6)


def test_weights_move_far_more_than_they_may_differ(alone):
    for name in ("all_terms", "reid_network"):
        torch.manual_seed(0)
        start = dict(SCENARIOS[name]()[0].named_parameters())
        moved = [
            float((alone[name]["weights"][key] - p.detach()).abs().max())
            for key, p in start.items()
            if p.requires_grad
        ]
        assert min(moved) > 1e-4, name


def test_if_the_forward_pass_of_a_rank_stops_all_skip_and_only_it_is_named(alone, ranks):
    assert alone["with_fault"]["skipped"] == 2
    owner = {2: (1, 0), 3: (2, 0)}[len(ranks)]
    for number, rank in enumerate(ranks):
        result = rank["with_fault"]
        assert result["skipped"] == 2
        skips = [text for text in result["log"] if "rank " in text]
        for text, faulty, name in zip(skips, owner, ("5.jpg", "0.jpg")):
            assert f"rank {faulty}: " in text and name in text
            assert text.count("rank ") == 1
        stopped = [text for text in result["log"] if "forward pass" in text]
        assert len(skips) == 2 and len(stopped) == owner.count(number)


def test_losses_of_separate_shares_differ(alone, ranks):
    """SOLVER.GATHER_OVER_RANKS has an effect, and the comparison above can fail."""
    people = {
        *("loss_pair_relation", "loss_distance_preservation", "loss_triplet_relation"),
        *("loss_probability", "loss_view_logits", "loss_id_table", "loss_oim", "loss_identity"),
    }
    for name, expected_losses, least in (
        ("each_its_own", people, 0.2),
        ("reid_each_its_own", {"loss_reid_triplet"}, 0.2),
        # Its mean differs only as far as the numbers of labelled samples do.
        ("reid_each_its_own", {"loss_reid_cls"}, 1e-3),
    ):
        found, expected = ranks[0][name]["losses"], alone[name]["losses"]
        for loss in expected_losses:
            wrong = [abs(f[loss] / e[loss] - 1) for f, e in zip(found, expected) if e[loss]]
            assert max(wrong) > least, (loss, wrong)


def test_the_key_has_no_effect_in_one_process(alone):
    for joint, own in (("all_terms", "each_its_own"), ("reid_network", "reid_each_its_own")):
        for key, value in alone[joint]["weights"].items():
            assert torch.equal(value, alone[own]["weights"][key])


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
