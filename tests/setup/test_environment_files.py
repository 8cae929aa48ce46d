"""The pins, the ranges, the Makefile's choice of environment, and .ci/run."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kd_search.cli import doctor

REPO = Path(__file__).resolve().parents[2]


#: Tests have a stand-in for these.
NOT_PINNED = {"wandb"}


def pins():
    return doctor.read_pins(REPO / "requirements-dev.txt")


def ranges():
    """Return the requirements of setup.py, extras included."""
    call = next(
        node
        for node in ast.walk(ast.parse((REPO / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    values = {
        keyword.arg: keyword.value
        for keyword in call.keywords
        if keyword.arg in ("install_requires", "extras_require")
    }
    required = ast.literal_eval(values["install_requires"])
    extras = ast.literal_eval(values["extras_require"])
    return [Requirement(line) for lines in [required, *extras.values()] for line in lines]


def test_every_range_of_setup_py_holds_what_was_tested():
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    for requirement in ranges():
        if requirement.name in NOT_PINNED:
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_setup_py_brings_neither_detectron2_nor_a_second_opencv_by_default():
    names = {requirement.name for requirement in ranges()}
    assert "detectron2" not in names
    call = (REPO / "setup.py").read_text(encoding="utf-8").partition("install_requires")[2]
    assert "opencv" not in call.partition("extras_require")[0]


def test_pins_follow_included_files_and_ignore_comments(tmp_path):
    (tmp_path / "base.txt").write_text("# note\ntorch==2.14.1  # why\n\n")
    (tmp_path / "dev.txt").write_text("-r base.txt\npytest==9.2.0\n")
    expected = {"torch": "2.14.1", "pytest": "9.2.0"}
    assert doctor.read_pins(tmp_path / "dev.txt") == expected


@pytest.mark.parametrize(
    "line", ["torch>=2.6", "torch", "torch==2.*", "torch==2; python_version>'3'"]
)
def test_a_line_that_is_no_pin_is_named(tmp_path, line):
    (tmp_path / "base.txt").write_text(f"numpy==2.4.6\n{line}\n")
    with pytest.raises(ValueError, match=r"base\.txt:2"):
        doctor.read_pins(tmp_path / "base.txt")


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({"torch": "2.14.1"}, None),
        ({"torch": "2.14.1+cu130"}, None),
        ({"torch": "2.14.10"}, "torch 2.14.1 is pinned, 2.14.10 is installed"),
        ({}, "torch 2.14.1 is pinned, none is installed"),
    ],
)
def test_versions_are_compared_without_the_build(monkeypatch, installed, message):
    monkeypatch.setattr(doctor, "installed_version", installed.get)
    assert doctor.mismatches({"torch": "2.14.1"}) == ([message] if message else [])


@pytest.mark.parametrize("name", ["opencv-python-headless", "opencv-python"])
def test_either_opencv_satisfies_the_pin(monkeypatch, name):
    monkeypatch.setattr(doctor, "installed_version", {name: "5.0.0.93"}.get)
    assert doctor.mismatches({"opencv-python-headless": "5.0.0.93"}) == []


def make_fake_environment(folder, status):
    """Make an environment with a python that exits with ``status``."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)
    return folder


def planned(folder, **variables):
    """Return the commands that ``make test`` would run in a copy of the checkout's Makefile."""
    env = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    result = subprocess.run(
        ["make", "--dry-run", "test"],
        cwd=folder,
        env={**env, **{key: str(value) for key, value in variables.items()}},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile and the files that it depends on."""
    folder = tmp_path / "checkout"
    (folder / "tools").mkdir(parents=True)
    (folder / "kd_search" / "cli").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "setup.py"):
        shutil.copy(REPO / name, folder)
    shutil.copy(REPO / "pyproject.toml", folder)
    for name in ("check_environment", "install_detectron2"):
        shutil.copy(REPO / "tools" / f"{name}.py", folder / "tools")
    for name in ("doctor", "install_detectron2", "detectron2_patches"):
        shutil.copy(REPO / "kd_search" / "cli" / f"{name}.py", folder / "kd_search" / "cli")
    return folder


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMakefile:
    @pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
    def test_an_active_environment_that_fits_is_used(self, checkout, tmp_path, variable):
        active = make_fake_environment(tmp_path / "active", status=0)
        commands = planned(checkout, **{variable: active})
        assert f'"{active}/bin/python" -m pytest' in commands
        assert "-m venv" not in commands

    def test_an_active_environment_that_does_not_fit_is_left_alone(self, checkout, tmp_path):
        active = make_fake_environment(tmp_path / "active", status=1)
        commands = planned(checkout, VIRTUAL_ENV=active)
        assert '".venv/bin/python" -m pytest' in commands
        assert "-m venv .venv" in commands
        assert str(active) not in commands

    def test_without_an_active_environment_the_set_up_makes_one(self, checkout):
        commands = planned(checkout)
        steps = ["-m venv .venv", "requirements-dev.txt", "install_detectron2.py", "--editable ."]
        positions = [commands.index(step) for step in [*steps, "-m pytest"]]
        assert positions == sorted(positions)

    def test_a_finished_set_up_is_not_repeated_until_a_pin_changes(self, checkout):
        ready = checkout / ".venv" / ".kd_search_ready"
        ready.parent.mkdir()
        ready.touch()
        newest = max(path.stat().st_mtime for path in checkout.rglob("*")) + 10
        os.utime(ready, (newest, newest))
        assert "pip install" not in planned(checkout)
        os.utime(checkout / "requirements.txt", (newest + 10, newest + 10))
        assert "pip install" in planned(checkout)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("failing", [None, "lint", "typecheck", "docs", "wheel", "test"])
def test_ci_fails_with_its_first_failing_target(tmp_path, failing):
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPO / ".ci" / "run", tmp_path / ".ci" / "run")
    targets = ["lint", "typecheck", "docs", "wheel", "test"]
    rules = (f"{t}:\n\ttouch {t}.done\n\t{'false' if t == failing else 'true'}\n" for t in targets)
    (tmp_path / "Makefile").write_text("\n".join(rules))
    result = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, check=False)
    assert (result.returncode == 0) == (failing is None)
    expected = targets[: targets.index(failing) + 1] if failing else targets
    assert [t for t in targets if (tmp_path / f"{t}.done").exists()] == expected


def test_the_built_package_has_every_module_config_page_and_the_marker_of_types(tmp_path):
    configs = [*(REPO / "configs").rglob("*.yaml"), *REPO.glob("projects/*/configs/**/*.yaml")]
    scripts = [*REPO.glob("projects/*/train_net.py")]
    assert scripts
    for path in [REPO / "setup.py", REPO / "pyproject.toml", *scripts, *configs]:
        copy = tmp_path / path.relative_to(REPO)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copytree(REPO / "kd_search", tmp_path / "kd_search")
    zoo = Path("kd_search/model_zoo")
    gone = tmp_path / "built" / zoo / "configs" / "gone.yaml"  # of an earlier build
    gone.parent.mkdir(parents=True)
    gone.touch()
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "built"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    wanted = {path.relative_to(REPO) for path in (REPO / "kd_search").rglob("*.py")}
    # Configs that need the package of their project are not in the wheel.
    others = tuple(str(script.parent) for script in scripts)
    wanted |= {zoo / p.relative_to(REPO) for p in configs if not str(p).startswith(others)}
    built = {path.relative_to(tmp_path / "built") for path in (tmp_path / "built").rglob("*.*")}
    static = (REPO / "kd_search/server/static").iterdir()
    wanted |= {Path("kd_search/py.typed"), *(path.relative_to(REPO) for path in static)}
    assert built == wanted
