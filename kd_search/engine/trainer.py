"""The trainer of person search: Detectron2's DefaultTrainer with exact resuming."""

import logging
import os
import signal
import time
import weakref
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from kd_search.checkpoint import PersonSearchCheckpointer, load_trained
from kd_search.data.detection.loader import (
    build_plain_detection_test_loader,
    build_seeded_detection_train_loader,
)
from kd_search.data.person_search.loader import (
    build_person_search_test_loader,
    build_person_search_train_loader,
)
from kd_search.data.reid import build_reid_test_loader, build_reid_train_loader, is_reid
from kd_search.engine.defaults import argument_parser, run_folders, setup
from kd_search.engine.finished_run import WEIGHTS_FILE
from kd_search.engine.hooks import build_hooks
from kd_search.engine.launch import is_bad_input, launch
from kd_search.engine.parallel import hold_together, wrap_model
from kd_search.engine.signals import StopSignals, interrupts_blocked, stop_error
from kd_search.engine.solver import build_optimizer
from kd_search.engine.task import (
    check_num_classes,
    check_task,
    is_search_task,
    network_method,
    train_task,
)
from kd_search.engine.train_step import (
    TrainStep,
    draw_seed,
    read_loss_normalizers,
    seed_everything,
    write_loss_normalizers,
)
from kd_search.engine.writers import build_writers, cut_metrics
from kd_search.evaluation import PersonSearchEvaluator
from kd_search.evaluation.detection import build_detection_evaluator
from kd_search.evaluation.reid.evaluator import ReIDEvaluator
from kd_search.modeling import as_distillable
from kd_search.utils.comm import unwrap_model
from kd_search.utils.folder_lock import release_folder

logger = logging.getLogger(__name__)


@contextmanager
def _bad_input_without_trace() -> Iterator[None]:
    """Detectron2's training loop logs no traceback of bad input inside."""

    def keep(record: logging.LogRecord) -> bool:
        return not (record.exc_info and record.exc_info[1] and is_bad_input(record.exc_info[1]))

    loop = logging.getLogger(TrainerBase.__module__)
    loop.addFilter(keep)
    try:
        yield
    finally:
        loop.removeFilter(keep)


class PersonSearchTrainer(DefaultTrainer):
    """Trains the network of a config; override its ``build_*`` methods as Detectron2's.

    In addition to ``DefaultTrainer``, on Detectron2 0.5 and main:

    - A resumed run has the results of an uninterrupted one: it restores model, ID tables,
      optimizer, scheduler, gradient scaler, seed and data order. Random numbers depend on seed,
      iteration and rank only.
    - All ranks check losses and gradients of every step together, see :class:`TrainStep`.
    - After SIGINT and SIGTERM it writes a checkpoint at the end of the step, and stops.
    - Several ranks can train on the CPU.
    - Its folders are reserved from :meth:`resume_or_load` to the end of :meth:`train`: a second
      training in ``OUTPUT_DIR`` raises an error.

    Example::

        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    """

    iter: int

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: see :func:`kd_search.engine.setup`.

        Raises:
            ValueError: ``SOLVER.AMP.ENABLED`` on the CPU.
        """
        TrainerBase.__init__(self)
        for name in ("detectron2", "kd_search"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(distributed_rank=comm.get_rank(), name=name)
        if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
            raise ValueError(
                f"SOLVER.AMP.ENABLED requires a CUDA GPU, MODEL.DEVICE is {cfg.MODEL.DEVICE}: set "
                "SOLVER.AMP.ENABLED to False"
            )
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.start_iter = 0
        #: Results of the evaluation after the checkpoint of a resumed run.
        self.last_results: dict[str, float] = {}
        self.max_iter = cfg.SOLVER.MAX_ITER
        seed = draw_seed(cfg.SEED)
        # All ranks have the same initial weights, and a student the same with and without terms.
        seed_everything(seed, 0)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._signals = StopSignals()
        self._trainer = TrainStep(
            model=wrap_model(model),
            optimizer=optimizer,
            seed=seed,
            max_skipped_steps=cfg.SOLVER.MAX_SKIPPED_STEPS,
            grad_scaler=torch.amp.GradScaler("cuda") if cfg.SOLVER.AMP.ENABLED else None,
            stop_requests=self._signals.requests,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        if getattr(model, "needs_original_images", False) and not cfg.INPUT.WITH_ORIGINAL_IMAGE:
            self.cfg = cfg.clone()
            self.cfg.defrost()
            self.cfg.INPUT.WITH_ORIGINAL_IMAGE = True
            self.cfg.freeze()
        self.checkpointer = self._build_checkpointer()
        self._data_loader: Any = None
        self._data_iterator: Any = None
        self._folders: list[str] = []
        #: Whether a signal ends the run after this step.
        self.stopping = False
        self.register_hooks(self.build_hooks())

    def _build_checkpointer(self) -> PersonSearchCheckpointer:
        scaler = self._trainer.grad_scaler
        more: dict[str, Any] = {"grad_scaler": scaler} if scaler else {}
        return PersonSearchCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            trust_pickle=self.cfg.MODEL.TRUST_PICKLE,
            max_to_keep=self.cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            trainer=weakref.proxy(self),
            **more,
        )

    # ------------------------------------------------------------------------------------ running

    @property
    def seed(self) -> int:
        """Seed of all random numbers: ``cfg.SEED``, a drawn one, or that of a checkpoint."""
        return self._trainer.seed

    @property
    def data_loader(self) -> Any:
        """The training loader, from ``start_iter`` on; built at first use."""
        if self._data_loader is None:
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.SEED = self.seed
            self._data_loader = self.build_train_loader(cfg, self.start_iter)
        return self._data_loader

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint of ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Raises:
            FileNotFoundError, ValueError: as :meth:`PersonSearchCheckpointer.resume_or_load`, or
                the iteration of the checkpoint exceeds ``SOLVER.MAX_ITER``.
            FolderInUseError, OSError: ``OUTPUT_DIR`` is in use, or not writable.
        """
        self._hold_folders()
        extra = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if extra["resumed"]:
            # The iteration of a checkpoint is the last finished one.
            self.start_iter = extra["iteration"] + 1
            if self.start_iter > self.max_iter:
                raise ValueError(
                    f"checkpoint {extra['resumed']} is of iteration {extra['iteration']}, beyond "
                    f"SOLVER.MAX_ITER {self.max_iter}: raise it, or train without --resume"
                )
            if self.start_iter == self.max_iter:
                logger.info("%s is of a finished run: there is nothing to train", extra["resumed"])
                if os.path.basename(extra["resumed"]) != WEIGHTS_FILE:
                    # It was killed between the last periodic checkpoint and the final one.
                    name, _ = os.path.splitext(WEIGHTS_FILE)
                    self.checkpointer.save(name, iteration=extra["iteration"])
            self.checkpointer.last_iteration = extra["iteration"]
            logger.info("Resuming %s at iteration %d", extra["resumed"], self.start_iter)
        else:
            # A Distiller may copy layers of the teacher to the student.
            getattr(unwrap_model(self.model), "initialise", list)()
        if resume and comm.is_main_process():
            self.last_results = cut_metrics(self.cfg.OUTPUT_DIR, self.start_iter)
        self._data_loader = self._data_iterator = None

    def train(self) -> Optional[OrderedDict[str, Any]]:
        """Train from ``start_iter`` to ``SOLVER.MAX_ITER``; returns the last evaluation, if any.

        Raises:
            KeyboardInterrupt, SystemExit: after SIGINT, SIGTERM; a checkpoint was written.
            FloatingPointError: too many consecutive steps were skipped.
            FolderInUseError, OSError: ``OUTPUT_DIR`` is in use, or not writable.
        """
        self._hold_folders()
        try:
            with self._signals, _bad_input_without_trace():
                # Before the loop, which would block Ctrl-C during the construction.
                _ = self.data_loader
                super().train()
        finally:
            if comm.is_main_process():
                for folder in self._folders:
                    release_folder(folder)
            self._folders = []
        return getattr(self, "_last_eval_results", None)

    def _hold_folders(self) -> None:
        if self._folders:
            return
        folders = run_folders(self.cfg, eval_only=False)
        for message in hold_together(folders):
            logger.warning(message)
        self._folders = folders

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = self._next_batch()
        self._trainer.run(batch, self.iter, time.perf_counter() - start)

    def _next_batch(self) -> Any:
        if self._data_iterator is None:
            # Loaders start their workers with the iterator or with the first batch.
            with interrupts_blocked():
                self._data_iterator = iter(self.data_loader)
                return next(self._data_iterator)
        try:
            return next(self._data_iterator)
        except Exception as error:
            if self._signals.received is None or self.iter == self.start_iter:
                raise
            # The signal may have been sent to all processes of the job, and have ended the workers.
            logger.warning("No more data after the stop signal: %s", error)
            self._save_now(self.iter - 1)
            raise stop_error(self._signals.received) from None

    def after_step(self) -> None:
        self.stopping = any(self._trainer.stop_signals)
        super().after_step()
        if self.stopping:
            self._save_now(self.iter)
            # No rank exits before rank 0 has written: launchers would kill the others.
            comm.synchronize()
            interrupted = self._trainer.stop_signals[0] > 0
            raise stop_error(signal.SIGINT if interrupted else signal.SIGTERM)

    def after_train(self) -> None:
        # A loop without iterations counts one as well.
        self.iter = min(self.iter, max(self.start_iter, self.max_iter))
        super().after_train()

    def _save_now(self, finished: int) -> None:
        """Write a checkpoint of the last finished iteration, if there is none."""
        if self.checkpointer.last_iteration != finished:
            with self._signals.held():
                self.checkpointer.save(f"model_{finished:07d}", iteration=finished)

    def _evaluate(self) -> dict[str, Any]:
        if self.stopping:
            return {}
        try:
            with self._signals.at_once():
                self._last_eval_results = self.test(self.cfg, self.model)
        except (KeyboardInterrupt, SystemExit):
            if self.iter < self.max_iter:
                self._save_now(self.iter)
            raise
        return self._last_eval_results

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Context of long work before a step: a signal ends it immediately, with a checkpoint of
        the last finished iteration."""
        try:
            with self._signals.at_once():
                yield
        except (KeyboardInterrupt, SystemExit):
            self.stopping = True
            if self.iter > self.start_iter:
                self._save_now(self.iter - 1)
            raise

    # ------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Iteration, seed, counters, loss normalizers (of this rank), and the states of hooks."""
        state = TrainerBase.state_dict(self)
        state["loss_normalizers"] = read_loss_normalizers(unwrap_model(self.model))
        state["seed"] = self.seed
        state["skipped_steps"] = self._trainer.skipped_steps
        state["skipped_in_row"] = self._trainer.skipped_in_row
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state)
        seed = state.get("seed", self.seed)
        if self.cfg.SEED >= 0 and seed != self.cfg.SEED:
            logger.warning("SEED %d is ignored: resuming with %d", self.cfg.SEED, seed)
        self._trainer.seed = seed
        write_loss_normalizers(unwrap_model(self.model), state.get("loss_normalizers", {}))
        self._trainer.skipped_steps = state.get("skipped_steps", 0)
        self._trainer.skipped_in_row = state.get("skipped_in_row", 0)

    # ---------------------------------------------------------------------------------- builders

    def build_hooks(self) -> list[Any]:
        """See :func:`kd_search.engine.hooks.build_hooks`."""
        return build_hooks(self, self._evaluate)

    def build_writers(self) -> list[Any]:
        return build_writers(self.cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The meta-architecture of the config, on ``MODEL.DEVICE``.

        For ``RetinaNet`` a :class:`~kd_search.modeling.DistillableRetinaNet`: the same network,
        whose losses have the same bits in every process.

        Raises:
            ValueError: ``MODEL.META_ARCHITECTURE`` is not registered, or of the architecture.
        """
        name = cfg.MODEL.META_ARCHITECTURE
        if name not in META_ARCH_REGISTRY:
            known = ", ".join(sorted(known for known, _ in META_ARCH_REGISTRY))
            raise ValueError(f"MODEL.META_ARCHITECTURE {name!r} is none of {known}")
        # Detectron2's RetinaNet has other rounding errors in a resumed run.
        model = build_model(as_distillable(cfg) if name == "RetinaNet" else cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`kd_search.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> Any:
        """Batches of ``DATASETS.TRAIN``, from the batch of iteration ``start_iter`` on.

        Raises:
            FileNotFoundError, ValueError: a set is missing or invalid, sets are of several tasks,
                or do not fit the network in task or classes.
        """
        task = train_task(cfg.DATASETS.TRAIN)
        check_task(cfg, cfg.DATASETS.TRAIN)
        if build := network_method(cfg, "build_train_loader"):
            return build(cfg, start_iter)
        if task == "reid":
            return build_reid_train_loader(cfg, start_iter=start_iter)
        if task == "person_search":
            return build_person_search_train_loader(cfg, start_iter=start_iter)
        loader = build_seeded_detection_train_loader(cfg, start_iter=start_iter)
        check_num_classes(cfg, cfg.DATASETS.TRAIN)
        return loader

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """As ``DefaultTrainer.test``; a network with ``evaluate_search`` rates search itself."""
        evaluate, names = network_method(cfg, "evaluate_search"), cfg.DATASETS.TEST
        if evaluate is None or evaluators or not all(is_search_task(cfg, name) for name in names):
            return super().test(cfg, model, evaluators)
        network: Any = unwrap_model(model)
        network = getattr(network, "student", network)
        results: OrderedDict[str, Any] = OrderedDict()
        for name in names:
            folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
            results[name] = evaluate(cfg, network, name, folder)
            if comm.is_main_process():
                print_csv_format(results[name])
        return results[names[0]] if len(names) == 1 else results

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Every image of a test set once, with its queries in person search; of a re-ID set every
        query and gallery sample."""
        check_task(cfg, [dataset_name])
        if is_reid(dataset_name):
            return build_reid_test_loader(cfg, dataset_name)
        if is_search_task(cfg, dataset_name):
            return build_person_search_test_loader(cfg, dataset_name)
        loader = build_plain_detection_test_loader(cfg, dataset_name)
        check_num_classes(cfg, [dataset_name])
        return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Evaluator of a test set, with files in ``OUTPUT_DIR/inference/<dataset_name>``.

        Search and detection metrics in person search, AP of boxes in detection, mAP and CMC of a
        re-ID set.
        """
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        if is_reid(dataset_name):
            return ReIDEvaluator(cfg, dataset_name, output_dir=output_dir)
        if is_search_task(cfg, dataset_name):
            return PersonSearchEvaluator(cfg, dataset_name, output_dir=output_dir)
        return build_detection_evaluator(dataset_name, output_dir)


def train_main(
    trainer: type[PersonSearchTrainer] = PersonSearchTrainer, args: Optional[Namespace] = None
) -> Any:
    """Train or evaluate by the command line: the ``main`` of a ``train_net.py``.

    Args:
        trainer: the trainer, or a subclass with ``build_*`` methods of its own.
        args: of :func:`~kd_search.engine.argument_parser`; by default those of this process.

    Returns:
        results of the evaluation, if it ran in this process.
    """
    if args is None:
        args = argument_parser().parse_args()
    return launch(partial(_train_or_evaluate, trainer), args)


def _train_or_evaluate(trainer_class: type[PersonSearchTrainer], args: Namespace) -> Any:
    cfg = setup(args)
    if not args.eval_only:
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    # With --resume of the last checkpoint, otherwise of MODEL.WEIGHTS.
    model = trainer_class.build_model(cfg)
    checkpointer = PersonSearchCheckpointer(
        model, cfg.OUTPUT_DIR, trust_pickle=cfg.MODEL.TRUST_PICKLE
    )
    if args.resume and comm.all_gather(checkpointer.has_checkpoint())[0]:
        checkpointer.resume_or_load("", resume=True)
    else:
        load_trained(
            model, cfg.MODEL.WEIGHTS, trust_pickle=cfg.MODEL.TRUST_PICKLE, for_inference=True
        )
    results = trainer_class.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
