"""Mutation tests: check that tests fail for each of the plausible mistakes in mutants.yaml.

A mutant is one mistake in a copy of the checkout. Its tests run on that copy; if none fails, the
mutant has survived, and a test is missing. torch and Detectron2 are imported once: every mutant
runs in a fork of this process, with its copy first on ``sys.path``. The same tests have to pass
without a mutant first.

    python tests/mutation/run.py --only losses --only hooks
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import yaml

HERE = Path(__file__).resolve().parent
CAUGHT, SURVIVED, TIMED_OUT, BROKEN = "caught", "survived", "timed out", "broken"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# The time limit of a mutant: a multiple of the time of its tests without it, and extra seconds.
_PATIENCE, _MORE_SECONDS = 5, 60
_LOG_LINES = 20


class Mutant(NamedTuple):
    """One mistake."""

    area: str
    file: str
    what: str  # in words
    old: str  # occurs exactly once in the file
    new: str
    tests: tuple[str, ...]  # files or folders of the tests that should fail

    def apply(self, root: Path) -> str:
        """Return the source of the file in a checkout, with the mistake.

        Raises:
            ValueError: the fragment does not occur exactly once.
        """
        source = (root / self.file).read_text()
        count = source.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.file}: {self.old!r} ({self.what}) occurs {count} times and not once: "
                "update the list of mutants"
            )
        return source.replace(self.old, self.new)


class Outcome(NamedTuple):
    """Result of tests on a copy of the checkout."""

    outcome: str
    failed: list[str]  # node ids of tests, in the order in which they failed
    seconds: float
    seconds_of_files: dict[str, float]
    log: str  # the end of the output of pytest


def read_mutants(path: Path) -> tuple[list[Mutant], list[str]]:
    """Return the mutants of a list, and the modules to import before forking.

    The list is YAML: ``preload``, and ``areas``, which maps area to file to ``tests`` and
    ``mutants``; a mutant has ``what``, ``old``, ``new`` and optionally its own ``tests``.
    """
    content = yaml.safe_load(path.read_text())
    mutants = [
        Mutant(area, file, m["what"], m["old"], m["new"], tuple(m.get("tests", entry["tests"])))
        for area, files in content["areas"].items()
        for file, entry in files.items()
        for m in entry["mutants"]
    ]
    return mutants, content["preload"]


def copy_checkout(root: Path, target: Path) -> None:
    """Copy the files that git tracks or would add."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    names = subprocess.run(
        [*command, "--exclude-standard"], check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            # With the time of the file, by which Python recognises outdated bytecode.
            shutil.copy2(root / name, target / name)


class Recorder:
    """Pytest plugin that records failed tests, and the time of the tests of each file."""

    def __init__(self):
        self.failed: list[str] = []
        self.seconds: Counter = Counter()

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid.split("::")[0]] += report.duration
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Run:
    """Tests in a fork of this process.

    Args:
        folder: for its files; ``tree`` in it is the checkout to test.
        tests: files or folders.
        package: must be that of the checkout.
        options: of pytest.
        limit: seconds; None: no limit.
    """

    def __init__(
        self,
        folder: Path,
        tests: Sequence[str],
        package: str,
        options: Sequence[str],
        limit: Optional[float] = None,
    ):
        self._folder, self._limit = folder, limit
        self._start = time.monotonic()
        self._pid = os.fork()
        if self._pid == 0:
            code = 70
            try:
                os.setsid()
                code = _test(folder, tests, package, options)
            except BaseException:
                traceback.print_exc()
            finally:
                # Without the clean-up handlers of the parent.
                os._exit(code)

    def poll(self) -> Optional[Outcome]:
        """Return the result; None while the tests run."""
        seconds = time.monotonic() - self._start
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        late = not pid and self._limit is not None and seconds > self._limit
        if not pid and not late:
            return None
        self.kill()
        if late:
            os.waitpid(self._pid, 0)
        log = (self._folder / "log").read_text(errors="replace").splitlines()[-_LOG_LINES:]
        found = {"failed": [], "seconds": {}}
        with contextlib.suppress(FileNotFoundError):
            found = json.loads((self._folder / "found.json").read_text())
        if late:
            outcome = TIMED_OUT
        elif found["failed"]:
            outcome = CAUGHT
        else:
            outcome = SURVIVED if status == 0 else BROKEN
        return Outcome(outcome, found["failed"], seconds, found["seconds"], "\n".join(log))

    def kill(self) -> None:
        """Kill it with all processes of its tests."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)


def _test(folder: Path, tests: Sequence[str], package: str, options: Sequence[str]) -> int:
    """Run tests on ``folder/tree`` in this process; returns pytest's exit status."""
    tree = folder / "tree"
    with open(folder / "log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(tree)
    sys.argv = ["pytest"]
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in (str(HERE), str(HERE.parents[1])))]
    os.environ["PYTHONPATH"] = str(tree)  # of the processes that tests start
    importlib.invalidate_caches()
    origin = Path(importlib.util.find_spec(package).origin)
    if package in sys.modules or tree not in origin.parents:
        raise RuntimeError(f"{package} would be that of {origin}")

    import pytest
    from hypothesis import HealthCheck, Phase, settings

    # The same examples each time, without shrinking those that fail.
    settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.explicit, Phase.generate],
    )
    recorder = Recorder()
    own = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    own.append(f"--basetemp={folder / 'tmp'}")
    status = int(pytest.main([*own, *options, *tests], plugins=[recorder]))
    found = {"failed": recorder.failed, "seconds": recorder.seconds}
    (folder / "found.json").write_text(json.dumps(found))
    return status


def run_mutants(
    mutants: Sequence[Mutant],
    work: Path,
    baseline: Outcome,
    options: Sequence[str],
    *,
    jobs: int = 1,
    all_tests: bool = False,
) -> Iterator[tuple[Mutant, Outcome]]:
    """Yield mutants of the checkout in ``work/tree`` with their outcomes, as they finish.

    Args:
        baseline: of the same tests without a mutant.
        options: of pytest.
        jobs: mutants at once.
        all_tests: run the whole suite on each.
    """
    waiting = list(enumerate(mutants))
    running: dict[int, Run] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, mutant = waiting.pop(0)
                folder = work / str(number)
                shutil.copytree(work / "tree", folder / "tree")
                file = folder / "tree" / mutant.file
                shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
                file.write_text(mutant.apply(work / "tree"))
                tests = ("tests",) if all_tests else mutant.tests
                usual = sum(
                    seconds
                    for name, seconds in baseline.seconds_of_files.items()
                    if name.startswith(tests)
                )
                limit = _MORE_SECONDS + _PATIENCE * jobs * usual
                package = mutant.file.split("/")[0]
                running[number] = Run(folder, tests, package, options, limit)
            for number, run in list(running.items()):
                outcome = run.poll()
                if outcome is not None:
                    del running[number]
                    shutil.rmtree(work / str(number))
                    yield mutants[number], outcome
            time.sleep(0.05)
    finally:
        for run in running.values():
            run.kill()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Return 0 if every mutant was caught, 1 if not, 2 if the mutants could not be tested."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", type=Path, default=HERE / "mutants.yaml", metavar="FILE")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="the checkout")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="mutants with this in their area, file or description; may be repeated",
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once (default: 1)")
    parser.add_argument("--all-tests", action="store_true", help="the whole suite on each mutant")
    parser.add_argument(
        "--keep-going", action="store_true", help="find every test that fails, not only the first"
    )
    parser.add_argument(
        "--deselect",
        action="append",
        default=[],
        metavar="TEST",
        help="leave out a test that fails here without a mutant; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the outcomes here")
    args = parser.parse_args(argv)
    root = args.root.resolve()
    mutants, preload = read_mutants(args.list)
    mutants = [m for m in mutants if _is_chosen(m, args.only)]
    try:
        if not mutants:
            raise ValueError(f"--only {' '.join(args.only)}: there is no such mutant")
        for mutant in mutants:
            mutant.apply(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in _THREADS:
        os.environ[name] = "1"
    os.environ.setdefault("KD_SEARCH_TEST_DATA", str(root.parent / "shared" / "data"))
    for module in preload:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as work:
        return _report(args, root, mutants, Path(work))


def _is_chosen(mutant: Mutant, only: Optional[list[str]]) -> bool:
    text = f"{mutant.area} {mutant.file} {mutant.what}"
    return only is None or any(part in text for part in only)


def _report(args, root: Path, mutants: list[Mutant], work: Path) -> int:
    copy_checkout(root, work / "tree")
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    tests = ["tests"] if args.all_tests else tests
    print(f"{len(mutants)} mutants; their tests without a mutant:", flush=True)
    options = [f"--deselect={test}" for test in args.deselect]
    baseline = _wait(Run(work, tests, mutants[0].file.split("/")[0], options))
    if baseline.outcome != SURVIVED:
        print(f"{baseline.log}\nThese tests fail without a mutant: fix or --deselect them")
        print(*baseline.failed, sep="\n", file=sys.stderr)
        return 2
    print(f"all pass ({baseline.seconds:.0f} s)", flush=True)
    start, rows = time.monotonic(), []
    options += [] if args.keep_going else ["--exitfirst"]
    outcomes = run_mutants(
        mutants, work, baseline, options, jobs=args.jobs, all_tests=args.all_tests
    )
    for number, (mutant, outcome) in enumerate(outcomes, 1):
        left = (time.monotonic() - start) / number * (len(mutants) - number) / 60
        print(
            f"[{number}/{len(mutants)}, {left:.0f} min left] {outcome.outcome:9} "
            f"{mutant.file}: {mutant.what} ({outcome.seconds:.1f} s)",
            *outcome.failed,
            *([outcome.log] if outcome.outcome in (BROKEN, TIMED_OUT) else []),
            sep="\n    ",
            flush=True,
        )
        row = {**mutant._asdict(), "outcome": outcome.outcome, "caught_by": outcome.failed}
        rows.append({**row, "seconds": round(outcome.seconds, 1)})
    counts = Counter(row["outcome"] for row in rows)
    print(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    for row in rows:
        if row["outcome"] != CAUGHT:
            print(f"{row['outcome']}: {row['file']}: {row['what']}\n  - {row['old']}")
            print(f"  + {row['new']}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if counts[CAUGHT] == len(rows) else 1


def _wait(run: Run) -> Outcome:
    try:
        while (outcome := run.poll()) is None:
            time.sleep(0.05)
        return outcome
    except BaseException:
        run.kill()
        raise


if __name__ == "__main__":
    sys.exit(main())
