"""The list of mutants is up to date, and run.py tells which of them tests catch."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.mutation.run import read_mutants

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MUTANTS, _ = read_mutants(HERE / "mutants.yaml")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.what}")
def test_a_mutant_is_one_mistake_in_code_that_is_there(mutant):
    source = (ROOT / mutant.file).read_text()
    assert ast.dump(ast.parse(mutant.apply(ROOT))) != ast.dump(ast.parse(source))
    assert mutant.tests and all((ROOT / test).exists() for test in mutant.tests)


def test_mutants_are_many_and_in_every_area():
    areas = Counter(mutant.area for mutant in MUTANTS)
    assert len(set(MUTANTS)) == len(MUTANTS) >= 60
    assert min(areas.values()) >= 5 and len(areas) >= 8


CODE = """
def double(x):
    return x + x


def triple(x):
    return 3 * x
"""
TESTS = """
from code_of_toy import double


def test_double():
    assert double(3) == 6
    assert double(0) == 0
"""


@pytest.fixture
def toy(tmp_path):
    """(run, folder): a checkout with one file of code and one of tests; runs mutants of it."""
    root = tmp_path / "toy"
    (root / "code_of_toy").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "code_of_toy" / "__init__.py").write_text(CODE)
    (root / "tests" / "test_toy.py").write_text(TESTS)
    (root / "pytest.ini").write_text("[pytest]\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)

    def run(*mutants, options=()):
        file = {
            "tests": ["tests/test_toy.py"],
            "mutants": [dict(zip(("what", "old", "new"), mutant)) for mutant in mutants],
        }
        content = {"preload": [], "areas": {"toy": {"code_of_toy/__init__.py": file}}}
        (tmp_path / "list.yaml").write_text(yaml.safe_dump(content))
        arguments = ["--list", tmp_path / "list.yaml", "--root", root, "--json", tmp_path / "json"]
        command = [sys.executable, str(HERE / "run.py"), *map(str, arguments), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    return run, tmp_path


def test_caught_survived_and_broken_are_told_apart(toy):
    run, folder = toy
    result = run(
        ("sign", "x + x", "x - x"),
        ("nobody tests it", "3 * x", "4 * x"),
        ("no Python", "x + x", "x +"),
        ("leaves pytest", "x + x", "__import__('os')._exit(3)"),
    )
    assert result.returncode == 1, result.stderr
    rows = json.loads((folder / "json").read_text())
    assert [row["outcome"] for row in rows] == ["caught", "survived", "caught", "broken"]
    assert rows[0]["caught_by"] == ["tests/test_toy.py::test_double"]
    assert rows[2]["caught_by"] == ["tests/test_toy.py"]
    assert "2 caught, 1 survived, 1 broken" in result.stdout
    # The checkout itself is as it was.
    assert (folder / "toy" / "code_of_toy" / "__init__.py").read_text() == CODE


def test_the_status_is_0_where_all_are_caught(toy):
    run, _ = toy
    mutants = ("sign", "x + x", "x - x"), ("nobody tests it", "3 * x", "4 * x")
    result = run(*mutants, options=["--only", "sign", "--jobs", "2", "--all-tests", "--keep-going"])
    assert result.returncode == 0, result.stderr
    assert "[1/1, 0 min left] caught" in result.stdout


@pytest.mark.parametrize("fragment", ["return", "no such line"])
def test_a_fragment_that_does_not_occur_once_is_refused(toy, fragment):
    run, folder = toy
    result = run(("what", fragment, "pass"))
    assert result.returncode == 2 and not (folder / "json").exists()
    assert "code_of_toy/__init__.py" in result.stderr and fragment in result.stderr


def test_tests_that_fail_without_a_mutant_say_nothing_about_mutants(toy):
    run, folder = toy
    (folder / "toy" / "tests" / "test_toy.py").write_text("def test_wrong():\n    assert False\n")
    result = run(("sign", "x + x", "x - x"))
    assert result.returncode == 2 and "test_wrong" in result.stderr
