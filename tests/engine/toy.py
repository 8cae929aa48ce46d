"""A trainer of a network of a few hundred weights, and helpers; tests also run it as a script.

The network has all that the engine handles: a batch norm, an ID table with queue, and random
numbers in the forward pass. ``$TOY`` (JSON) sets faults: ``nan`` lists [iteration, rank] whose loss
is NaN, ``seconds`` makes every step slower, ``log`` names a file that gets one line per step.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from kd_search.config import get_cfg
from kd_search.distillation import DistillationTerm, Distiller
from kd_search.engine import PersonSearchTrainer, launch
from kd_search.modeling import IDTable
from kd_search.outputs import IdentityOutputs, ModelOutputs, ModelSpec, Part
from tests.forked import Forked

NUM_IDS, DIM, BATCH = 5, 4, 2


def options() -> dict:
    return json.loads(os.environ.get("TOY", "{}"))


def toy_cfg(output_dir, *overrides):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.OIM.NUM_IDS = NUM_IDS
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.STEPS = (5,)
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SEED = 7
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list(list(overrides))
    return cfg


class ToyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, DIM, 3, bias=False)
        self.norm = nn.BatchNorm2d(DIM)
        self.id_table = IDTable(num_ids=NUM_IDS, queue_size=3, embedding_dim=DIM)

    def embeddings(self, batch):
        x = torch.stack([item["image"] for item in batch])
        return nn.functional.normalize(self.norm(self.conv(x)).relu().mean(dim=(2, 3)) + 0.1)

    def forward(self, batch):
        return self.forward_train(batch)[0]

    def spec(self):
        return ModelSpec(features={}, num_classes=0, parts=frozenset({Part.EMBEDDINGS}))

    def forward_train(self, batch):
        embeddings = self.embeddings(batch)
        embeddings = embeddings + 0.1 * torch.rand(())
        ids = torch.cat([item["instances"].gt_person_ids for item in batch])
        trouble = sum(item["poison"] for item in batch)
        unit = nn.functional.normalize(embeddings)
        losses = {
            "loss_oim": self.id_table(unit, ids),
            "loss_box": (embeddings * trouble).square().sum() + embeddings.square().mean(),
        }
        return losses, ModelOutputs(identities=IdentityOutputs(unit, ids))

    def embed(self, batch, boxes):
        return self.embeddings(batch)


class ToyTerm(DistillationTerm):
    """A term with a table of its own."""

    student_parts = frozenset({Part.EMBEDDINGS})

    def __init__(self):
        super().__init__()
        self.table = IDTable(num_ids=NUM_IDS, queue_size=2, embedding_dim=DIM)

    def forward(self, student, teacher):
        identities = student.identities
        return {"loss_term": self.table(identities.embeddings, identities.person_ids)}


def toy_distiller():
    return Distiller(student=ToyNetwork(), terms=nn.ModuleDict({"ToyTerm": ToyTerm()}))


class ToyLoader:
    """Inputs with one person each, as a function of seed and position; each rank has its share."""

    def __init__(self, seed, start_iter=0, end_iter=10**9, poison=()):
        self.seed = seed
        self.span = (start_iter, end_iter)
        self.poison = [tuple(p) for p in poison]

    def __iter__(self):
        for iteration in range(*self.span):
            rank, size = comm.get_rank(), comm.get_world_size()
            first = (iteration * size + rank) * BATCH
            bad = (iteration, rank) in self.poison
            yield [toy_input(self.seed, p, bad) for p in range(first, first + BATCH)]


def toy_input(seed, position, bad=False):
    generator = torch.Generator().manual_seed(seed * 100003 + position)
    instances = Instances((5, 5))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
    ids = torch.randint(-1, NUM_IDS, (1,), generator=generator)
    instances.gt_person_ids = ids
    return {
        "image": torch.rand(3, 5, 5, generator=generator),
        "instances": instances,
        "image_id": position,
        "file_name": f"{position}.jpg",
        "poison": float("nan") if bad else 0.0,
    }


class ToyTrainer(PersonSearchTrainer):
    network = ToyNetwork

    @classmethod
    def build_model(cls, cfg):
        return cls.network()

    @classmethod
    def build_train_loader(cls, cfg, start_iter=0):
        return ToyLoader(cfg.SEED, start_iter, poison=options().get("nan", ()))

    def run_step(self):
        time.sleep(options().get("seconds", 0))
        super().run_step()
        if "log" in options() and comm.is_main_process():
            with open(options()["log"], "a") as f:
                f.write(f"{self.iter}\n")


class ToyDistillerTrainer(ToyTrainer):
    network = staticmethod(toy_distiller)


def trained(cls, cfg, resume=True):
    """Train, from the last checkpoint of the folder if ``resume``; returns the trainer."""
    trainer = cls(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def everything(trainer) -> dict:
    """State that a resumed run must share with one without interruption."""
    network = trainer.model
    return {
        "model": {k: v.clone() for k, v in network.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "seed": trainer.seed,
        "skipped_steps": trainer._trainer.skipped_steps,
    }


def assert_same(one, other, path="") -> None:
    """Compare nested containers; tensors bit for bit."""
    assert type(one) is type(other), path
    if torch.is_tensor(one):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for number, (x, y) in enumerate(zip(one, other)):
            assert_same(x, y, f"{path}[{number}]")
    else:
        assert one == other, path


def read_metrics(folder: Path) -> list[dict]:
    """Lines of ``metrics.json``."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def in_another_process(function) -> int:
    """Wait status of a fork that runs a function."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


def start_script(name, toy, *arguments, launcher=(), fork=True):
    """Start a script of this folder in a process, on one CPU thread, with ``$TOY`` set.

    Without ``fork``, Python and the ranks that it starts are new, as they are for users.
    """
    here = Path(__file__).resolve().parent
    environment = {
        **os.environ,
        "TOY": json.dumps(toy),
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-W", "ignore", *launcher, str(here / name), *arguments]
    if fork:
        return Forked(command, env=environment, stderr=subprocess.STDOUT)
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(log: Path, number: int, process) -> None:
    """Wait until a file has as many lines; fail with the output of the process if it ends first."""
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) >= number):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the toy training did not get going"
        time.sleep(0.02)


def main(args):
    torch.set_num_threads(1)
    trained(ToyTrainer, toy_cfg(*args.opts), resume=args.resume)


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
