#!/usr/bin/env python
"""Write docs/configuration.md from the comments of config keys.

The keys are those of kd_search/config/ and kd_search/distillation/methods/*/config.py.

python tools/make_config_reference.py           # write
python tools/make_config_reference.py --check   # exit 1 if the file is not current
"""

import argparse
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
#: Files of keys relative to ``kd_search``, in the order of the reference.
FILES = (
    *("config/data.py", "config/model.py", "config/distillation.py"),
    "distillation/methods/*/config.py",
    "config/training.py",
)
TARGET = REPO / "docs" / "configuration.md"

HEAD = """# Configuration reference

<!-- Made by tools/make_config_reference.py from kd_search/config/ and
kd_search/distillation/methods/*/config.py: edit these instead. -->

`kd_search.config.get_cfg()` returns a config with these keys, with those that other packages
register (`kd_search.config.register_config`), and with all keys of
[Detectron2](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references),
which keep their meaning. In brackets, where a default comes from: a paper, or this project.
"""

KEY = re.compile(r"^    cfg\.([A-Z0-9_.]+) = (.+)$")


def read_source() -> str:
    """The contents of the files, one after the other."""
    package = REPO / "kd_search"
    return "\n".join(
        path.read_text() for pattern in FILES for path in sorted(package.glob(pattern))
    )


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
    """The page, with one section a node in the order of the files."""
    sections: dict[str, str] = {}
    for key, default, description in keys:
        node = key.rpartition(".")[0]
        section = sections.setdefault(node, f"\n## {node}\n")
        sections[node] = section + f"\n**`{key}`** = `{default}`  \n{description}\n"
    return HEAD + "".join(sections.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the file is not current"
    )
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
