"""A training of a project."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from kd_search.engine import PersonSearchTrainer
from kd_search.engine.finished_run import write_run_record
from kd_search.experiments.run_facts import machine_of
from kd_search.utils.files import atomic_write, write_json

#: When, where and with which versions a training was started last, in its folder.
ENVIRONMENT_FILE = "environment.json"


def train(cfg: CfgNode, hook: HookBase, imports: Sequence[str] = ()) -> None:
    """Train a network in ``OUTPUT_DIR``, from the last checkpoint on if there is one.

    ``config.yaml`` there is the whole config. Evaluation is a step of its own.

    Args:
        cfg: of the network.
        hook: runs besides those of the trainer.
        imports: modules that other commands must import to use the network.

    Raises:
        KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM, with a checkpoint.
    """
    with atomic_write(Path(cfg.OUTPUT_DIR) / "config.yaml") as file:
        file.write(cfg.dump().encode())
    write_run_record(cfg.OUTPUT_DIR, imports)
    started = datetime.now(timezone.utc).isoformat("T", "seconds")
    write_json(Path(cfg.OUTPUT_DIR) / ENVIRONMENT_FILE, {"started": started, **machine_of(cfg)})
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    cfg.freeze()
    trainer = PersonSearchTrainer(cfg)
    trainer.register_hooks([hook])
    trainer.resume_or_load(resume=True)
    trainer.train()
