"""Makes the prototypes of global knowledge from the training set, again and again."""

import logging
import math
from collections.abc import Callable
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from kd_search.data.training_records import build_record_loader, training_records
from kd_search.distillation.distiller import Distiller
from kd_search.distillation.methods.global_knowledge.bank import ANY
from kd_search.distillation.methods.global_knowledge.candidates import choose_images
from kd_search.distillation.methods.global_knowledge.features import (
    CandidateFeatures,
    Candidates,
    gather_candidates,
)
from kd_search.distillation.methods.global_knowledge.match import PROTOTYPE_BANK
from kd_search.distillation.methods.global_knowledge.selection import (
    PickedPrototypes,
    cluster_identities,
    finite_candidates,
    pick_prototypes,
)
from kd_search.utils.comm import fail_together
from kd_search.utils.eval_mode import evaluating
from kd_search.utils.progress import Progress

logger = logging.getLogger(__name__)

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE"
_SHOWN = 10


class PrototypeGeneration:
    """The prototypes of a :class:`Distiller`, from boxes of its training set.

    Which images are looked at is chosen once, from the seed. The teacher looks at them in the first
    generation, the student in each, in evaluation mode and as a test would show them. The result
    does not depend on the number of ranks or of workers.

    Attributes:
        num_images: of the training set.
    """

    def __init__(self, cfg: CfgNode, distiller: Distiller, seed: int):
        """
        Args:
            cfg: of the training; ``DATASETS.TRAIN`` is read.
            distiller: with prototypes and a teacher.
            seed: the same on all ranks and in a resumed training.

        Raises:
            FileNotFoundError, ValueError: a set is missing or broken, or a key is out of range.
        """
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        self._node = node
        self._distiller = distiller
        self._seed = seed
        #: Groups without prototypes, as they were last warned of.
        self._empty: list[int] = []
        records = training_records(cfg)
        self.num_images = len(records)
        self._images = choose_images(
            records, images_per_class=node.IMAGES_PER_CLASS, min_size=node.MIN_SIZE, seed=seed
        )
        self._loader = []
        if self._images:
            self._loader = build_record_loader(cfg, records, list(self._images))
        bank = self._bank = distiller.companions[PROTOTYPE_BANK]
        # What a teacher detects has no identity, and so no cluster.
        confident = node.CONFIDENT_BOXES and not bank.by_identity
        self._features = CandidateFeatures(
            distiller.student,
            distiller.teacher,
            bank,
            self._images,
            min_size=node.MIN_SIZE,
            min_score=node.MIN_SCORE if confident else None,
        )

    def pick(self) -> list[PickedPrototypes]:
        """Prototypes of the student as it is now, the same on all ranks; a collective call.

        The first call fixes the clusters of people, if there are any; nothing else is changed.

        Raises:
            ValueError: an image cannot be read (see ``INPUT.ON_IMAGE_ERROR``), or a key is out of
                range. If any rank fails, all do.
        """
        progress = Progress(self._loader, "Looking at boxes for prototypes", logger)
        with evaluating(self._distiller.student):
            own = fail_together(lambda: self._features.visit(self._loader, progress.step))
        candidates = gather_candidates(own)
        if candidates is not None:
            candidates = _report_finite(candidates)
        self._cluster(candidates)
        picked = _from_main(lambda: self._pick(candidates))
        self._report(picked, progress.seconds)
        return picked

    def _pick(self, candidates: Candidates) -> list[PickedPrototypes]:
        return pick_prototypes(
            candidates,
            self._bank,
            alpha=self._node.ALPHA,
            percentile=self._node.PERCENTILE,
            bandwidth=self._node.BANDWIDTH,
            device=self._distiller.device,
        )

    def _cluster(self, candidates: Optional[Candidates]) -> None:
        bank = self._bank
        if not bank.by_identity or bool((bank.identity_groups != ANY).any()):
            return
        groups = _from_main(
            lambda: cluster_identities(
                candidates, len(bank.identity_groups), bank.num_groups, self._seed
            )
        )
        bank.identity_groups.copy_(groups)
        sizes = torch.bincount(groups[groups != ANY], minlength=bank.num_groups)
        logger.info("Clusters of people that look alike, identities in each: %s", sizes.tolist())

    def _report(self, picked: list[PickedPrototypes], seconds: float) -> None:
        bank = self._bank
        logger.info(
            "%d prototypes of %d groups and %d levels from %d images in %.1f s",
            *(sum(len(p.images) for p in picked), bank.num_groups, bank.num_levels),
            *(len(self._images), seconds),
        )
        empty = sorted({p.group for p in picked if not len(p.images)})
        if empty and empty != self._empty:
            what = "clusters of people" if bank.by_identity else "classes"
            shown = ", ".join(map(str, empty[:_SHOWN])) + (", ..." if empty[_SHOWN:] else "")
            logger.warning(
                "%d %s have no prototype, so that their regions weigh 1: %s",
                *(len(empty), what, shown),
            )
        self._empty = empty


class PrototypeHook(HookBase):
    """Makes prototypes before the first step and every so many iterations.

    Prototypes are made *before* the step of an iteration that is a multiple of the period, from
    weights that the checkpoint of the iteration before holds: an interrupted training that goes on
    from there makes the same ones. A training that is resumed in between has those of its
    checkpoint.
    """

    def __init__(self, cfg: CfgNode, distiller: Distiller):
        """
        Args:
            cfg: of the training.
            distiller: with ``prototypes``.

        Raises:
            ValueError: a key is out of range.
        """
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        _check_keys(node)
        self._cfg = cfg
        self._distiller = distiller
        self._bank = distiller.companions[PROTOTYPE_BANK]
        self._period = node.PERIOD
        self._generation: Optional[PrototypeGeneration] = None

    def before_train(self) -> None:
        """
        Raises:
            FileNotFoundError, ValueError: see :class:`PrototypeGeneration`.
        """
        if not self._bank.in_use:
            return
        self._generation = PrototypeGeneration(self._cfg, self._distiller, self.trainer.seed)
        if not self._period:
            batch = self._cfg.SOLVER.IMS_PER_BATCH
            self._period = math.ceil(self._generation.num_images / batch)

    def before_step(self) -> None:
        if not self._bank.in_use:
            return
        iteration = self.trainer.iter
        none_yet = iteration == self.trainer.start_iter and self._bank.is_empty
        if none_yet or iteration % self._period == 0:
            self._refresh()

    def _refresh(self) -> None:
        with self.trainer.between_steps():
            picked = self._generation.pick()
        for prototypes in picked:
            self._bank.put(*prototypes)
        filled = float(self._bank.filled.float().mean())
        self.trainer.storage.put_scalar("prototypes/filled", filled, smoothing_hint=False)


def _check_keys(node: CfgNode) -> None:
    """Refuse at once what would be refused in the first generation, an epoch of images later."""
    for key, fits, wanted in (
        ("PERIOD", node.PERIOD >= 0, "0 (an epoch) or more"),
        ("IMAGES_PER_CLASS", node.IMAGES_PER_CLASS >= 1, "1 or more"),
        ("ALPHA", 0 <= node.ALPHA < math.inf, "a number from 0 on"),
        ("PERCENTILE", 0 <= node.PERCENTILE <= 100, "from 0 to 100"),
        ("BANDWIDTH", node.BANDWIDTH > 0, "above 0"),
    ):
        if not fits:
            raise ValueError(f"{_KEY}.{key} {node[key]} must be {wanted}")


def _from_main(work: Callable):
    """What rank 0 makes, on all ranks; a collective call. If it fails, all do."""
    made = fail_together(lambda: work() if comm.is_main_process() else None)
    return comm.all_gather(made)[0]


def _report_finite(candidates: Candidates) -> Candidates:
    candidates, left_out = finite_candidates(candidates)
    if left_out:
        logger.warning("%d boxes have features that are not finite: left out", left_out)
    return candidates
