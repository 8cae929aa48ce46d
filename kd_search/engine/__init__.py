from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.engine.defaults import build_config, setup
from kd_search.engine.hooks import (
    IDTableAgreementHook,
    IDTableRefreshHook,
    IDTableStatisticsHook,
    build_hooks,
)
from kd_search.engine.id_rows import IdentityMeans, compute_identity_means
from kd_search.engine.launch import launch
from kd_search.engine.loss_gradients import LossGradient, loss_gradients
from kd_search.engine.prototype_hook import PrototypeGeneration, PrototypeHook
from kd_search.engine.train_step import TrainStep
from kd_search.engine.trainer import PersonSearchTrainer

__all__ = [
    "IDTableAgreementHook",
    "IDTableRefreshHook",
    "IDTableStatisticsHook",
    "IdentityMeans",
    "LossGradient",
    "PersonSearchCheckpointer",
    "PersonSearchTrainer",
    "PrototypeGeneration",
    "PrototypeHook",
    "TrainStep",
    "build_config",
    "build_hooks",
    "compute_identity_means",
    "launch",
    "loss_gradients",
    "setup",
]
