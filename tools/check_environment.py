#!/usr/bin/env python3
"""Check that this environment has every version that requirements-dev.txt pins.

The Makefile runs it before it uses an active environment. The exit status is 0 if everything fits,
and 1 otherwise, with one line on stderr for each package that does not.

Usage: ``python tools/check_environment.py [--quiet] [--python-only]``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The pinned NumPy has no wheels for older versions.
OLDEST_PYTHON = (3, 11)
# Distributions that provide the same module as the pinned one.
SAME_MODULE = {
    "opencv-python-headless": (
        "opencv-python",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    )
}


def read_pins(path: Path) -> dict[str, str]:
    """Return {distribution: version} of a requirements file and of those that it includes."""
    pins: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = line.partition("#")[0].strip()
        included = re.match(r"(?:-r|--requirement)\s+(\S+)$", line)
        pinned = re.match(r"([A-Za-z0-9._-]+)==([^\s;*]+)$", line)
        if included:
            pins.update(read_pins(path.parent / included.group(1)))
        elif pinned:
            pins[pinned.group(1)] = pinned.group(2)
        elif line:
            raise ValueError(f"{path}:{number}: not a pin of the form name==version: {line}")
    return pins


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def mismatches(pins: dict[str, str]) -> list[str]:
    """Return a line for each pin that the environment does not satisfy."""
    lines = []
    for name, pinned in sorted(pins.items()):
        found = [installed_version(one) for one in (name, *SAME_MODULE.get(name, ()))]
        # 2.14.1+cu130 satisfies 2.14.1: a local part names a build, not a version.
        if pinned not in [version.partition("+")[0] for version in found if version]:
            have = next(filter(None, found), None)
            lines.append(f"{name} {pinned} is pinned, {have or 'none'} is installed")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quiet", action="store_true", help="print only the first reason")
    parser.add_argument("--python-only", action="store_true", help="check Python only")
    args = parser.parse_args(argv)
    lines = []
    if sys.version_info[:2] < OLDEST_PYTHON:
        lines.append(
            "Python {}.{} or newer is needed for the pinned packages, this is {}.{}".format(
                *OLDEST_PYTHON, *sys.version_info[:2]
            )
        )
    elif not args.python_only:
        lines = mismatches(read_pins(ROOT / "requirements-dev.txt"))
    if lines and args.quiet:
        more = f" (and {len(lines) - 1} more)" if lines[1:] else ""
        lines = [f"the active environment {sys.prefix} is not used: {lines[0]}{more}"]
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
