"""Packages of projects that register keys and classes, which only their own tests may see."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
)

from kd_search.config import registry
from kd_search.distillation import COMPANION_REGISTRY, DISTILLATION_TERM_REGISTRY

STORES: tuple[dict[str, Any], ...] = (
    registry._registered,
    BACKBONE_REGISTRY._obj_map,
    COMPANION_REGISTRY._obj_map,
    DISTILLATION_TERM_REGISTRY._obj_map,
    META_ARCH_REGISTRY._obj_map,
    PROPOSAL_GENERATOR_REGISTRY._obj_map,
    ROI_HEADS_REGISTRY._obj_map,
)
#: What each package has registered; it is imported once in a process.
_TAKEN: dict[str, list[dict[str, Any]]] = {}


def only_here(package: str) -> Callable[..., Any]:
    """Take back what an imported package has registered, and return an autouse fixture for the
    module of its tests in which it is registered again."""
    found = [
        {name: store.pop(name) for name in list(store) if _is_of(store[name], package)}
        for store in STORES
    ]
    for taken, new in zip(_TAKEN.setdefault(package, [{} for _ in STORES]), found):
        taken.update(new)
    return pytest.fixture(autouse=True, scope="module")(lambda: (yield from _present(package)))


def _is_of(value: Any, package: str) -> bool:
    return str(value.__module__).split(".")[0] == package


def _present(package: str) -> Iterator[None]:
    with _registered(package):
        yield


@contextmanager
def _registered(package: str) -> Iterator[None]:
    for store, names in zip(STORES, _TAKEN[package]):
        store.update(names)
    try:
        yield
    finally:
        for store, names in zip(STORES, _TAKEN[package]):
            for name in names:
                del store[name]
