"""Scripts and configs of the projects, and results of runs that replace trainings."""

import importlib.util
import os
import subprocess
import sys
from functools import cache

from detectron2.config import CfgNode, get_cfg
from tiny import REPO

from kd_search import add_kd_search_config
from kd_search.experiments import RESULT_FILE, SETTINGS_FILE, settings_of
from kd_search.utils.files import write_json


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


def finish(run, metrics) -> None:
    """Write the files of a finished run with these metrics."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / SETTINGS_FILE, settings_of(run.config))
    write_json(run.folder / RESULT_FILE, {"metrics": metrics})


def run_script(project: str, name: str, *options, **environment) -> str:
    """Standard output of projects/``project``/``name``.py, in one thread; it must succeed."""
    done = subprocess.run(
        [sys.executable, str(REPO / "projects" / project / f"{name}.py"), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
