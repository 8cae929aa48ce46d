"""Scripts and configs of the projects."""

import importlib.util
import sys
from functools import cache

from detectron2.config import CfgNode, get_cfg
from tiny import REPO

from kd_search import add_kd_search_config


def load_script(project: str, name: str):
    """The module of projects/``project``/``name``.py.

    Several projects have an ablate.py: each is loaded under a name of its own.
    """
    own = f"projects_{project}_{name}"
    if own not in sys.modules:
        path = REPO / "projects" / project / f"{name}.py"
        spec = importlib.util.spec_from_file_location(own, path)
        sys.modules[own] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[own]


def configs_of(project: str) -> list:
    """All configs of a project."""
    return sorted((REPO / "projects" / project / "configs").rglob("*.yaml"))


def runnable(project: str) -> list:
    """Configs to train with: not the parts they are made of."""
    return [path for path in configs_of(project) if not path.name.startswith("Base-")]


def name_of(path) -> str:
    """Below the project's folder of configs."""
    return f"{path.parent.name}/{path.name}"


def merged(path) -> CfgNode:
    """A config with all its bases; the caller may change it."""
    return _merged(path).clone()


@cache
def _merged(path) -> CfgNode:
    cfg = get_cfg()
    add_kd_search_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg
