#!/usr/bin/env python3
"""Fill the code blocks of documents from the files that they name.

    python tools/include_code.py docs/adding_a_method.md

A block is filled where the line before it is <!-- include: FILE -->, relative to the repository.
"""

import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- include: (\S+) -->\n```\w*\n).*?(```)", re.DOTALL)


def filled(text: str) -> str:
    """The text of a document with its blocks filled."""
    return _BLOCK.sub(lambda block: block[1] + (REPO / block[2]).read_text() + block[3], text)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
