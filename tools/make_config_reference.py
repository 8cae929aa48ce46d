#!/usr/bin/env python
"""Write docs/configuration.md from the comments of kd_search/config/.

python tools/make_config_reference.py           # write
python tools/make_config_reference.py --check   # exit 1 if the file is not current
"""

import argparse
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
SOURCE = REPO / "kd_search" / "config"
#: In the order of add_kd_search_config().
FILES = ("data.py", "model.py", "distillation.py", "training.py")
TARGET = REPO / "docs" / "configuration.md"

HEAD = """# Configuration reference

<!-- Made by tools/make_config_reference.py from kd_search/config/: edit that instead. -->

These keys are added by `add_kd_search_config(cfg)`; all keys of
[Detectron2](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references)
keep their meaning. In brackets, where a default comes from: a paper, or this project.
"""

KEY = re.compile(r"^    cfg\.([A-Z0-9_.]+) = (.+)$")


def read_source() -> str:
    """The files, one after the other."""
    return "\n".join((SOURCE / name).read_text() for name in FILES)


def read_keys(source: str) -> list[tuple[str, str, str]]:
    """(key, default, description) of every key, in the order of the files."""
    keys, comment = [], []
    for line in source.splitlines():
        stripped = line.strip()
        match = KEY.match(line)
        if stripped.startswith("#"):
            comment.append(stripped[1:].strip())
        elif match and match[2] != "CN()":
            keys.append((match[1], match[2], " ".join(comment)))
            comment = []
        elif not stripped or match:
            comment = []
    return keys


def render(keys: list[tuple[str, str, str]]) -> str:
    parts, group = [HEAD], None
    for key, default, description in keys:
        prefix = key.rpartition(".")[0]
        if prefix != group:
            parts.append(f"\n## {prefix}\n")
            group = prefix
        parts.append(f"\n**`{key}`** = `{default}`  \n{description}\n")
    return "".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    args = parser.parse_args()
    text = render(read_keys(read_source()))
    if not args.check:
        TARGET.write_text(text)
        return 0
    if not TARGET.is_file() or TARGET.read_text() != text:
        print(
            "docs/configuration.md is not current: run python tools/make_config_reference.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
