"""Scripts and configs of the projects, and results of runs that replace trainings."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

import derive_config
from detectron2.config import CfgNode, get_cfg
from tiny import REPO

from kd_search import add_kd_search_config
from kd_search.experiments import RESULT_FILE, SETTINGS_FILE, runs, settings_of
from kd_search.utils.files import write_json
from tests import forked


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


_FOLDER = tempfile.TemporaryDirectory()
#: The configs of the checkout, and in it those that :func:`runnable` has derived.
TREE = Path(_FOLDER.name)
for _path in [*(REPO / "configs").rglob("*.yaml"), *(REPO / "projects").rglob("*.yaml")]:
    (TREE / _path.relative_to(REPO)).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_path, TREE / _path.relative_to(REPO))


def commands(project: str, script: str) -> list[list[str]]:
    """Options of every command of a project's README that runs this script, or command."""
    text = (REPO / "projects" / project / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(rf"^ +(?:python )?{script} (.*)$", text, re.M)
    return [shlex.split(line) for line in found]


@cache
def runnable(project: str) -> list[Path]:
    """Configs to train with: not the parts they are made of, but those that the README derives."""
    before = os.getcwd()
    os.chdir(TREE)
    try:
        for options in commands(project, "tools/derive_config.py"):
            for path, content in derive_config.derive(derive_config.parse_args(options)).items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
    finally:
        os.chdir(before)
    paths = sorted((TREE / "projects" / project / "configs").rglob("*.yaml"))
    return [path for path in paths if not path.name.startswith("Base-")]


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


def run_script(project: str, name: str, *options, start=None, **environment) -> str:
    """Standard output of projects/``project``/``name``.py, in one thread; it must succeed.

    By default it runs in this process, and its trainings are forked from one that has imported
    what they need, which spares the imports of all of them; otherwise in one of ``start``, a
    function of :mod:`tests.forked`.
    """
    script, words = str(REPO / "projects" / project / f"{name}.py"), [*map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if start is not None:
        done = start([sys.executable, script, *words], env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    module, printed, before = load_script(project, name), io.StringIO(), os.getcwd()
    patched = (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", [script]),
        mock.patch.object(runs, "subprocess", mock.Mock(Popen=_forked_training)),
    )
    with patched[0], patched[1], patched[2], contextlib.redirect_stdout(printed):
        try:
            status = module.main(words)
        finally:
            os.chdir(before)
    assert status == 0, printed.getvalue()
    return printed.getvalue()


def _forked_training(command, stdout, env, **_) -> forked.Forked:
    """What :class:`subprocess.Popen` is for a command of train_run, without its imports."""
    return forked.Forked(command, stdout=stdout.name, stderr=subprocess.STDOUT, env=env)
