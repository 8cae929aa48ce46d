"""Say what is installed, what is missing, which versions were tested, and what to do.

    kd-search doctor
    kd-search doctor --pins requirements-dev.txt

Looks at Python, the packages, Detectron2, the GPU, and the folders of data sets. With --pins it
only compares the installed versions with those of a requirements file, one line for each that
differs. Nothing is changed.

Exit status: 0 everything needed is there, 1 something is missing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kd_search.cli._arguments import command_parser

# The pinned NumPy has no wheels for older versions.
OLDEST_PYTHON = (3, 11)
# That of setup.py.
OLDEST_SUPPORTED_PYTHON = (3, 9)
#: Versions that the tests run with, as in requirements.txt; other ones may work.
TESTED = {
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "detectron2": "0.5",
    "fvcore": "0.1.5.post20221221",
    "iopath": "0.1.10",
    "matplotlib": "3.11.2",
    "numpy": "2.4.6",
    "opencv-python-headless": "5.0.0.93",
    "pillow": "13.0.0",
    "pycocotools": "2.0.11",
    "pydantic": "2.14.4",
    "PyYAML": "6.0.3",
    "scipy": "1.17.1",
    "tabulate": "0.10.0",
    "tensorboard": "2.21.0",
    "termcolor": "3.3.0",
    "tqdm": "4.70.1",
    "yacs": "0.1.8",
}
#: What to do about a package that is missing; by default: install it.
_ADVICE = {
    "detectron2": "kd-search install-detectron2",
    "opencv-python-headless": "pip install opencv-python-headless (kd-search generate and demo)",
}
#: Packages that are imported: installed ones may be broken, as without the libraries of a GPU.
_IMPORTED = ("torch", "torchvision", "detectron2", "cv2")
#: Folder of a data set below $DETECTRON2_DATASETS.
_DATA_FOLDERS = {
    "PRW": "prw",
    "CUHK-SYSU": "cuhk_sysu",
    "KITTI": "kitti",
    "ILSVRC DET": "ILSVRC",
    "Market-1501": "market1501",
    "MARS": "mars",
    "DukeMTMC-VideoReID": "duke_video",
    "VeRi-776": "veri",
    "ATRW": "atrw",
}
#: Environment variable and default folder of other data sets.
_DATA_VARIABLES = {
    "generated people": ("KD_SEARCH_GENERATED", "output/generated"),
    "generated objects": ("KD_SEARCH_OBJECTS", "output/objects"),
    "generated tracklets": ("KD_SEARCH_TRACKLETS", "output/tracklets"),
    "MOTChallenge": ("KD_SEARCH_MOT", ""),
}
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


def packages() -> Iterator[tuple[bool, str]]:
    """Whether each package of :data:`TESTED` is there, and a line about it."""
    for name, tested in TESTED.items():
        found = next(filter(None, map(installed_version, (name, *SAME_MODULE.get(name, ())))), None)
        if found is None:
            yield False, f"{name:24} missing: {_ADVICE.get(name, f'pip install {name}')}"
        elif found.partition("+")[0] == tested:
            yield True, f"{name:24} {found}"
        else:
            yield True, f"{name:24} {found}, tested with {tested}"


def imports() -> Iterator[tuple[bool, str]]:
    """Whether packages with compiled parts import, and a line about each that does not."""
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # of the libraries that it loads
            if not isinstance(error, ModuleNotFoundError):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                yield False, f"{name} is installed but does not import: {reason}"


def data_folders() -> Iterator[str]:
    """A line about the folder of each data set that is found, and one about the others."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    folders = {name: os.path.join(root, folder) for name, folder in _DATA_FOLDERS.items()}
    for name, (variable, default) in _DATA_VARIABLES.items():
        folders[name] = os.path.expanduser(os.getenv(variable, default))
    found = {name: folder for name, folder in folders.items() if os.path.isdir(folder)}
    for name, folder in found.items():
        yield f"{name:24} {folder}"
    missing = [name for name in folders if name not in found]
    if missing:
        yield f"not found                {', '.join(missing)}"
        yield (
            f"                         set DETECTRON2_DATASETS (now {root}) or "
            f"{', '.join(variable for variable, _ in _DATA_VARIABLES.values())}"
        )
        yield "                         your own data: kd-search check --json FILE --images DIR"


def gpu() -> str:
    """A line about the GPU; torch imports."""
    import torch

    if not torch.cuda.is_available():
        return "none: training runs on the CPU"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def examine() -> bool:
    """Print everything; returns whether nothing is missing."""
    version = ".".join(map(str, sys.version_info[:3]))
    lines = [(sys.version_info[:2] >= OLDEST_SUPPORTED_PYTHON, f"{'Python':24} {version}")]
    lines += packages()
    lines += imports()
    ok = all(good for good, _ in lines)
    for good, line in lines:
        print(f"{'  ' if good else '! '}{line}")
    if ok:
        print(f"  {'GPU':24} {gpu()}")
    print("data sets")
    for line in data_folders():
        print(f"  {line}")
    print("nothing is missing" if ok else "! marks what is missing or broken")
    return ok


def pin_mismatches(pins: Path, python_only: bool) -> list[str]:
    """A line for each version that is not that of a requirements file."""
    if sys.version_info[:2] < OLDEST_PYTHON:
        return [
            "Python {}.{} or newer is needed for the pinned packages, this is {}.{}".format(
                *OLDEST_PYTHON, *sys.version_info[:2]
            )
        ]
    return [] if python_only else mismatches(read_pins(pins))


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--pins", metavar="FILE", type=Path, help="requirements to compare with")
    parser.add_argument("--quiet", action="store_true", help="of --pins: print the first reason")
    parser.add_argument("--python-only", action="store_true", help="of --pins: check Python only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.pins is None:
        if args.quiet or args.python_only:
            parser.error("--quiet and --python-only belong to --pins")
        return 0 if examine() else 1
    try:
        lines = pin_mismatches(args.pins, args.python_only)
    except (OSError, ValueError) as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    if lines and args.quiet:
        more = f" (and {len(lines) - 1} more)" if lines[1:] else ""
        lines = [f"the active environment {sys.prefix} is not used: {lines[0]}{more}"]
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0
