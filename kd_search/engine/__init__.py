from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.engine.defaults import argument_parser, build_config, setup
from kd_search.engine.hooks import IDTableAgreementHook, IDTableStatisticsHook, build_hooks
from kd_search.engine.launch import launch
from kd_search.engine.loss_gradients import LossGradient, loss_gradients
from kd_search.engine.train_step import TrainStep
from kd_search.engine.trainer import PersonSearchTrainer, train_main
from kd_search.modeling.identity_means import (
    IdentityMeans,
    IDTableRefreshHook,
    compute_identity_means,
)

__all__ = [
    "IDTableAgreementHook",
    "IDTableRefreshHook",
    "IDTableStatisticsHook",
    "IdentityMeans",
    "LossGradient",
    "PersonSearchCheckpointer",
    "PersonSearchTrainer",
    "TrainStep",
    "argument_parser",
    "build_config",
    "build_hooks",
    "compute_identity_means",
    "launch",
    "loss_gradients",
    "setup",
    "train_main",
]
