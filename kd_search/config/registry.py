"""Registry of config keys of packages, and construction of configs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kd_search.config.data import add_data
from kd_search.config.distillation import add_distillation
from kd_search.config.model import add_model
from kd_search.config.ranges import flatten
from kd_search.config.training import add_training

if TYPE_CHECKING:
    from detectron2.config import CfgNode

AddKeys = Callable[["CfgNode"], None]

#: Modules that register the methods of kd_search when they are imported.
_BUILT_IN = ("kd_search.distillation.methods",)
_registered: dict[str, AddKeys] = {}


class ConfigError(ValueError):
    """A setting that does not fit, from any package; the command line prints it in one line."""


def register_config(add_keys: AddKeys) -> AddKeys:
    """Register a function that adds config keys in place; may be used as a decorator.

    All later configs have the keys, those of teachers and tools as well: call it at the import of a
    package. Registering a function again has no effect.

    Args:
        add_keys: called with a config that has all keys of Detectron2 and of kd_search's core.
    """
    name = f"{add_keys.__module__}.{add_keys.__qualname__}"
    # Lambdas and local functions share a name; a module that is reloaded replaces its function.
    _registered[f"{name}@{id(add_keys)}" if "<" in name else name] = add_keys
    return add_keys


def add_kd_search_config(cfg: CfgNode) -> None:
    """Add the keys of kd_search and all registered keys to a Detectron2 config, in place.

    Raises:
        ValueError: two packages register the same key.
    """
    import_modules(_BUILT_IN)
    for add in (add_data, add_model, add_distillation, add_training):
        add(cfg)
    owners = dict.fromkeys(flatten(cfg), "Detectron2 or kd_search")
    for name, add_keys in _registered.items():
        before = flatten(cfg)
        add_keys(cfg)
        after = flatten(cfg)
        lost = [key for key, value in before.items() if after.get(key) is not value]
        if lost:
            raise ValueError(
                f"{name} registers the config key {lost[0]}, which {owners[lost[0]]} has"
            )
        owners.update((key, name) for key in after if key not in owners)


def get_cfg() -> CfgNode:
    """A config with the defaults of Detectron2, of kd_search and of all registered keys."""
    from detectron2.config import get_cfg as get_detectron2_cfg

    cfg = get_detectron2_cfg()
    add_kd_search_config(cfg)
    return cfg


def import_modules(names: Iterable[str]) -> None:
    """Import modules that register config keys, networks, terms, companions or data sets.

    Raises:
        ValueError: a module cannot be found.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ValueError(
                f"--import {name}: there is no module {error.name}: install its package, or add "
                "its folder to PYTHONPATH"
            ) from None
