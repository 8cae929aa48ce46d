"""The command ``kd-search``: a table of commands, each a module that is imported when it runs.

A module has ``get_parser() -> ArgumentParser`` and ``main(argv) -> int``, the exit status. Torch,
Detectron2 and what needs them are imported inside of ``main`` once the arguments were parsed: no
wait for ``--help`` and for wrong arguments.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Optional

from kd_search.utils.threads import wait_passively

#: Command: its module in this package, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "compare": (
        "compare",
        "test whether two evaluated runs differ by chance",
    ),
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command that the arguments name; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from kd_search import __version__

        print(f"kd_search {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f", did you mean {close[0]}?" if close else ": see kd-search --help"
        print(f"kd-search: there is no command {name}{hint}", file=sys.stderr)
        return 2
    wait_passively()  # before a command imports torch
    module = importlib.import_module(f"kd_search.cli.{COMMANDS[name][0]}")
    try:
        return int(module.main(argv[1:]) or 0)
    except KeyboardInterrupt:
        print(f"\nkd-search {name}: interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: kd-search COMMAND ...   (kd-search COMMAND --help)", "", "commands:", *lines]
    )
