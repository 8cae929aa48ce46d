"""Names of the config files that come with the package."""

import difflib
import os
from functools import cache
from pathlib import Path

#: What a name of a shipped config may begin with, so that ``_BASE_`` can have one.
SCHEME = "kd_search://"
_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_root() -> Path:
    """Folder of ``configs/`` and ``projects/``: inside of an installed package, or the checkout."""
    installed = _PACKAGE / "model_zoo"
    return installed if (installed / "configs").is_dir() else _PACKAGE.parent


@cache
def shipped_configs() -> dict[str, str]:
    """Absolute paths of the shipped configs by name.

    A file has the name of its path in ``configs/``, such as ``prw/r50_fpn.yaml``; one of a project
    has that of the project before it, such as ``VKD/mars/teacher_r50.yaml``. All are listed by
    their path in the repository as well, which the configs of this package use for teachers.
    Projects with a ``train_net.py`` are left out: their configs need the package beside it.
    """
    root, files = shipped_root(), {}
    projects = sorted(root.glob("projects/*/configs"))
    own = [folder for folder in projects if not folder.with_name("train_net.py").exists()]
    for folder in [root / "configs", *own]:
        project = Path() if folder.parent == root else Path(folder.parent.name)
        for path in sorted(folder.rglob("*.yaml")):
            files[(project / path.relative_to(folder)).as_posix()] = str(path)
            files[path.relative_to(root).as_posix()] = str(path)
    return files


def shipped_config(name: str) -> str:
    """Absolute path of the shipped config of a name.

    Raises:
        FileNotFoundError: there is none; the message has the names that come close.
    """
    files = shipped_configs()
    if name not in files:
        raise FileNotFoundError(f"there is no shipped config {name}{_close(name, files)}")
    return files[name]


def find_config_file(name: str) -> str:
    """Path of a config file: ``name`` itself if it exists, or a shipped config of that name.

    Args:
        name: a path, or the name of a shipped config with or without ``kd_search://``. What is
            before ``kd_search://`` is ignored: a reader of ``_BASE_`` joins it with a folder.

    Raises:
        FileNotFoundError: there is neither a file nor a shipped config.
    """
    _, scheme, shipped = name.partition(SCHEME)
    if scheme:
        return shipped_config(shipped)
    if os.path.isfile(name):
        return name
    if name in shipped_configs():
        return shipped_config(name)
    close = "" if os.path.isabs(name) else _close(name, shipped_configs())
    raise FileNotFoundError(
        f"{name} does not exist{close or '.'} Paths count from the working directory, {os.getcwd()}"
    )


def _close(name: str, files: dict[str, str]) -> str:
    close = difflib.get_close_matches(name, files, n=3, cutoff=0.75)
    return f", did you mean {' or '.join(close)}?" if close else ""
