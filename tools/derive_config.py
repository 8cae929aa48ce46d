#!/usr/bin/env python
"""Make configs for other networks or data sets by replacing their names in existing configs.

    python tools/derive_config.py projects/VKD/configs/mars/teacher_r50.yaml \\
        projects/VKD/configs/mars/student_r50.yaml --replace r50 r34 r101

writes teacher_r34.yaml, student_r34.yaml, teacher_r101.yaml and student_r101.yaml beside them. A
name is replaced in the path and in the whole content: bases, files of the teacher, output folder.
With several --replace all combinations are written. Every derived config is merged once before it
is kept; existing files are never changed.

Exit status: 0 written, 2 nothing could be written.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from detectron2.config import get_cfg

from kd_search.config import add_kd_search_config
from kd_search.utils.files import atomic_write


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="relative to this folder")
    parser.add_argument(
        "--replace",
        nargs="+",
        action="append",
        required=True,
        metavar=("OLD", "NEW"),
        help="a name and what replaces it, one or several",
    )
    args = parser.parse_args(argv)
    if any(len(names) < 2 for names in args.replace):
        parser.error("--replace must be OLD NEW [NEW ...]")
    return args


def derive(args: argparse.Namespace) -> dict[Path, str]:
    """Content of the derived configs by path; configs that hold none of the names are left out.

    Args:
        args: of :func:`parse_args`.

    Raises:
        FileNotFoundError: a config does not exist.
        ValueError: the content of a config would change, but not its path, or nothing would.
    """
    derived: dict[Path, str] = {}
    old = [names[0] for names in args.replace]
    for new in itertools.product(*(names[1:] for names in args.replace)):
        for config in args.configs:
            if not os.path.isfile(config):
                raise FileNotFoundError(f"config file {config} does not exist")
            path, content = config, Path(config).read_text()
            for before, after in zip(old, new):
                path, content = path.replace(before, after), content.replace(before, after)
            if path != config:
                derived[Path(path)] = content
            elif content != Path(config).read_text():
                raise ValueError(f"{config}: --replace must change its path, too")
    if not derived:
        raise ValueError(f"--replace: no path of a config holds {' or '.join(old)}")
    return derived


def write(path: Path, content: str) -> None:
    """Write a config that merges.

    Raises:
        ValueError: it does not merge; nothing is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, where its bases are found.
    trial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        trial.write_text(content)
        cfg = get_cfg()
        add_kd_search_config(cfg)
        cfg.merge_from_file(str(trial), allow_unsafe=False)
    except (KeyError, ValueError, AssertionError, OSError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    finally:
        trial.unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(content.encode())


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    try:
        texts = derive(args)
        for path, content in texts.items():
            if path.exists() and path.read_text() != content:
                raise ValueError(f"{path} exists with other content: remove it first")
        for path, content in texts.items():
            write(path, content)
            print(f"wrote {path}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
