"""Generation of the prototypes of global knowledge from the training set."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Optional, TypeVar

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
from kd_search.utils.inference import Progress, evaluating

logger = logging.getLogger(__name__)

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE"
_SHOWN = 10
Result = TypeVar("Result")


class PrototypeGeneration:
    """The prototypes of a :class:`Distiller`, from boxes of its training set.

    The images are chosen once, from the seed, and transformed as in a test. The teacher runs in the
    first generation, the student in each, in evaluation mode. The result does not depend on the
    number of ranks or workers.

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
            FileNotFoundError, ValueError: a set is missing or invalid, or a key is out of range.
        """
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        self._node = node
        self._distiller = distiller
        self._seed = seed
        #: Groups without prototypes of the last warning.
        self._empty: list[int] = []
        records = training_records(cfg)
        self.num_images = len(records)
        self._images = choose_images(
            records, images_per_class=node.IMAGES_PER_CLASS, min_size=node.MIN_SIZE, seed=seed
        )
        self._loader: Iterable[list[dict[str, Any]]] = []
        if self._images:
            self._loader = build_record_loader(cfg, records, list(self._images))
        bank = self._bank = distiller.companions[PROTOTYPE_BANK]
        # Detections of a teacher have no identity, and so no cluster.
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
        """Prototypes of the current student, the same on all ranks; a collective call.

        The first call sets the clusters of people, if there are any; the bank's prototypes do not
        change.

        Raises:
            ValueError: an image cannot be read (see ``INPUT.ON_IMAGE_ERROR``), or a key is out of
                range. If any rank fails, all do.
        """
        progress = Progress(self._loader, "Pooling boxes for prototypes", logger)
        with evaluating(self._distiller.student):
            own = fail_together(lambda: self._features.visit(self._loader, progress.step))
        candidates = gather_candidates(own)
        if candidates is not None:
            candidates, left_out = finite_candidates(candidates)
            if left_out:
                logger.warning("%d boxes have features that are not finite: left out", left_out)
        self._cluster(candidates)
        picked = _from_main(
            lambda x: pick_prototypes(
                x,
                self._bank,
                alpha=self._node.ALPHA,
                percentile=self._node.PERCENTILE,
                bandwidth=self._node.BANDWIDTH,
                device=self._distiller.device,
            ),
            candidates,
        )
        self._report(picked, progress.seconds)
        return picked

    def _cluster(self, candidates: Optional[Candidates]) -> None:
        bank = self._bank
        if not bank.by_identity or bool((bank.identity_groups != ANY).any()):
            return
        groups = _from_main(
            lambda x: cluster_identities(x, len(bank.identity_groups), bank.num_groups, self._seed),
            candidates,
        )
        bank.identity_groups.copy_(groups)
        sizes = torch.bincount(groups[groups != ANY], minlength=bank.num_groups)
        logger.info("Identities in each cluster of people that look alike: %s", sizes.tolist())

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
                "%d %s have no prototype, their regions have weight 1: %s",
                *(len(empty), what, shown),
            )
        self._empty = empty


class PrototypeHook(HookBase):
    """Generates prototypes before the first step and once in every period of iterations.

    It runs *before* the step of an iteration that is a multiple of the period, with the weights of
    the previous iteration's checkpoint: a training that is resumed there generates the same
    prototypes. One that is resumed at another iteration has those of its checkpoint.
    """

    def __init__(self, cfg: CfgNode, distiller: Distiller):
        """
        Args:
            cfg: of the training.
            distiller: with a :class:`PrototypeBank`.

        Raises:
            ValueError: a key is out of range.
        """
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        # Checked now: the first generation would raise only after the features of its images.
        for key, fits, wanted in (
            ("PERIOD", node.PERIOD >= 0, "0 (an epoch) or more"),
            ("IMAGES_PER_CLASS", node.IMAGES_PER_CLASS >= 1, "1 or more"),
            ("ALPHA", 0 <= node.ALPHA < math.inf, "0 or more, and finite"),
            ("PERCENTILE", 0 <= node.PERCENTILE <= 100, "from 0 to 100"),
            ("BANDWIDTH", node.BANDWIDTH > 0, "above 0"),
        ):
            if not fits:
                raise ValueError(f"{_KEY}.{key} {node[key]} must be {wanted}")
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
        if self._generation is None:
            return
        iteration = self.trainer.iter
        none_yet = iteration == self.trainer.start_iter and self._bank.is_empty
        if not (none_yet or iteration % self._period == 0):
            return
        with self.trainer.between_steps():
            picked = self._generation.pick()
        for prototypes in picked:
            self._bank.put(*prototypes)
        filled = float(self._bank.filled.float().mean())
        self.trainer.storage.put_scalar("prototypes/filled", filled, smoothing_hint=False)


def _from_main(work: Callable[[Candidates], Result], candidates: Optional[Candidates]) -> Result:
    """Rank 0's result for its candidates, on all ranks; a collective call. If it fails, all do."""
    made = fail_together(lambda: None if candidates is None else work(candidates))
    result: Result = comm.all_gather(made)[0]
    return result
