"""Hooks of a training run: Detectron2's, and hooks of ID tables and distillation."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Optional

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules

from kd_search.data.person_search.loader import build_person_search_table_loader
from kd_search.distillation import Distiller
from kd_search.engine.parallel import id_tables
from kd_search.engine.task import best_metric
from kd_search.engine.writers import ProgressHook, ResultsHook, StartWritersHook
from kd_search.modeling.id_table import IDTable
from kd_search.modeling.identity_means import (
    IdentityMeans,
    IDTableRefreshHook,
    compute_identity_means,
)
from kd_search.utils.comm import unwrap_model

logger = logging.getLogger(__name__)

_TERMS = "terms."
_WRITE_EVERY = 20
_COMPARE_EVERY = 1000


def build_hooks(trainer: Any, evaluate: Callable[[], dict[str, Any]]) -> list[Optional[HookBase]]:
    """The hooks of :class:`PersonSearchTrainer`, in order.

    Hooks that change the state of training or write losses run before the checkpoint, evaluation
    after it.

    Args:
        trainer: under construction.
        evaluate: returns the nested results of an evaluation.
    """
    cfg = trainer.cfg
    tables = id_tables(trainer.model)
    labelled = {_label(name): table for name, table in tables.items()}
    model = unwrap_model(trainer.model)
    distiller = model if isinstance(model, Distiller) else None
    # Hooks before the timer are not part of the time of a step.
    result: list[Optional[HookBase]] = []
    if distiller is not None:
        result = [DistillationProgressHook(distiller), *distiller.companion_hooks(trainer)]
    result += [hooks.IterationTimer(), hooks.LRScheduler(), _precise_bn(trainer)]
    result += _own_refresh_hooks(trainer, tables)
    if distiller is not None:
        result += distiller.term_hooks(trainer)
    if comm.get_world_size() > 1:
        result.append(IDTableAgreementHook(tables, _COMPARE_EVERY))
    evaluation = [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate)]
    writers = trainer.build_writers() if comm.is_main_process() else []
    if cfg.WANDB.ENABLED:
        result.append(StartWritersHook(writers))
    if comm.is_main_process():
        writing = (writers, _WRITE_EVERY, cfg.TEST.EVAL_PERIOD)
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        # Without a period, only the final checkpoint.
        period = period if period > 0 else trainer.max_iter + 1
        result.append(IDTableStatisticsHook(labelled, _WRITE_EVERY))
        result.append(ProgressHook(*writing))
        result.append(hooks.PeriodicCheckpointer(trainer.checkpointer, period))
        best = _best_checkpointer(trainer)
        # The results are written last, after the best checkpoint.
        evaluation += [*([] if best is None else [best]), ResultsHook(*writing)]
    return [*result, *evaluation, MissedEvaluationHook(cfg.TEST.EVAL_PERIOD, evaluation)]


def _precise_bn(trainer: Any) -> Optional[HookBase]:
    cfg = trainer.cfg
    if not (cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(trainer.model)):
        return None
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = trainer.seed
    loader = trainer.build_train_loader(cfg)
    num_iter = cfg.TEST.PRECISE_BN.NUM_ITER
    return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, trainer.model, loader, num_iter)


def _own_refresh_hooks(trainer: Any, tables: dict[str, IDTable]) -> list[HookBase]:
    """Refresh of the student's own table by means of its embeddings (``MODEL.OIM``)."""
    cfg = trainer.cfg
    own = {_label(n): table for n, table in tables.items() if not n.startswith(_TERMS)}
    if not own or cfg.MODEL.OIM.REFRESH_PERIOD <= 0:
        return []

    def student_means(num_ids: int) -> IdentityMeans:
        loader = build_person_search_table_loader(cfg, cfg.DATASETS.TRAIN)
        model = unwrap_model(trainer.model)
        return compute_identity_means(model, loader, num_ids, keep_unlabelled=False)

    return [IDTableRefreshHook(cfg.MODEL.OIM.REFRESH_PERIOD, own, student_means)]


def _best_checkpointer(trainer: Any) -> Optional[HookBase]:
    """Saves the best checkpoint, on versions of Detectron2 that have such a hook."""
    base: Any = getattr(hooks, "BestCheckpointer", None)
    period = trainer.cfg.TEST.EVAL_PERIOD
    if base is None or period <= 0 or len(trainer.cfg.DATASETS.TEST) != 1:
        return None

    class BestCheckpointer(base):
        """With a state: a resumed run must not replace the best checkpoint by its first."""

        def state_dict(self) -> dict[str, Any]:
            return {"best_metric": self.best_metric, "best_iter": self.best_iter}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]

    return BestCheckpointer(period, trainer.checkpointer, best_metric(trainer.cfg))


def _label(name: str) -> str:
    """Prefix of a table's scalars: "id_table" of the network, "id_table/<term>" of a term."""
    return f"id_table/{name.split('.')[1]}" if name.startswith(_TERMS) else "id_table"


class DistillationProgressHook(HookBase):
    """Sets the progress of terms and companions before each step."""

    def __init__(self, distiller: Distiller):
        self._distiller = distiller

    def before_step(self) -> None:
        self._distiller.set_progress(self.trainer.iter / self.trainer.max_iter)


class MissedEvaluationHook(HookBase):
    """Evaluates the checkpoint of a resumed run, if the previous run did not.

    The checkpoint of an iteration is written before its evaluation. A run that was stopped in
    between has no results; one that was killed later has them in ``metrics.json``.
    """

    def __init__(self, period: int, evaluation: Sequence[HookBase]):
        """
        Args:
            period: ``TEST.EVAL_PERIOD``.
            evaluation: the hook of the evaluation, and those that use its results.
        """
        self._period = period
        self._evaluate, *self._users = evaluation

    def before_train(self) -> None:
        trainer = self.trainer
        start = trainer.start_iter
        if start == 0 or start >= trainer.max_iter or self._period <= 0 or start % self._period:
            return
        trainer.iter = trainer.storage.iter = start - 1
        results = comm.all_gather(trainer.last_results)[0]
        if results:
            trainer.storage.put_scalars(**results, smoothing_hint=False)
        else:
            logger.info("Evaluating iteration %d, which the previous run did not", start - 1)
            self._evaluate.after_step()
        for hook in self._users:
            hook.after_step()
        trainer.iter = trainer.storage.iter = start


class IDTableStatisticsHook(HookBase):
    """Logs the fractions of rows and slots in use, and the number of dropped embeddings.

    Args:
        tables: label to table.
        period: iterations between two entries.
    """

    def __init__(self, tables: dict[str, IDTable], period: int = _WRITE_EVERY):
        self._tables = tables
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        for label, table in self._tables.items():
            scalars: dict[str, Any] = {"rows_seen": table.rows.any(dim=1).float().mean()}
            if table.queue_size:
                scalars["queue_fill"] = table.queue.any(dim=1).float().mean()
            scalars["non_finite"] = table.num_non_finite
            for name, value in scalars.items():
                key = f"{label}/{name}"
                self.trainer.storage.put_scalar(key, float(value), smoothing_hint=False)


class IDTableAgreementHook(HookBase):
    """Stops the training, on all ranks, if the ranks' ID tables differ.

    Args:
        tables: name to table.
        period: iterations between two comparisons.
    """

    def __init__(self, tables: dict[str, IDTable], period: int = _COMPARE_EVERY):
        self._tables = tables
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        own = {name: table.fingerprint() for name, table in self._tables.items()}
        ranks = comm.all_gather(own)
        for name in own:
            other = [i for i, prints in enumerate(ranks) if prints[name] != ranks[0][name]]
            if other:
                raise RuntimeError(
                    f"ID table {name} of ranks {other} differs from that of rank 0 after iteration "
                    f"{self.trainer.iter}: only commit() may change its rows and queue"
                )
