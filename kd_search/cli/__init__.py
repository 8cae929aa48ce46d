"""The command ``kd-search``: a table of commands, each a module that is imported when it runs.

A module has ``get_parser() -> ArgumentParser`` and ``main(argv) -> int``, the exit status. Torch,
Detectron2 and what needs them are imported inside of ``main`` once the arguments were parsed: no
wait for ``--help`` and for wrong arguments.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence

from kd_search.utils.threads import wait_passively

#: Command: its module in this package, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the whole path on generated street scenes"),
    "init": ("init", "make a project for data of your own, with settings that fit them"),
    "distill": ("distill", "train, evaluate, compare and export the student of a project"),
    "train": ("train", "train or evaluate a network"),
    "evaluate": ("evaluate", "score a trained network, or detections from files"),
    "compare": ("compare", "test whether two evaluated runs differ by chance"),
    "calibrate": ("calibrate", "find the similarities above which two people are the same"),
    "plot": ("plot", "plot evaluated runs"),
    "show": ("show", "draw the ranked results of an evaluation"),
    "search": ("search", "search for a person in a folder of pictures or in a gallery"),
    "index": ("index", "find and embed everybody in folders, for searches"),
    "push": ("push", "copy a gallery into a PostgreSQL database"),
    "serve": ("serve", "search a gallery in the browser"),
    "forget": ("forget", "remove pictures or people from a gallery for good"),
    "export": ("export", "export a trained network to one file"),
    "release": ("release", "make a folder of an exported network for others, with a model card"),
    "check": ("check", "print the counts of a data set and its defects"),
    "convert": ("convert", "write a data set in another format"),
    "generate": ("generate", "generate a data set from a seed"),
    "table": ("table", "pre-compute the table of a teacher's embeddings"),
    "gradients": ("gradients", "print the gradient norm of each loss of a training"),
    "doctor": ("doctor", "say what is installed, what is missing, and what to do"),
    "install-detectron2": ("install_detectron2", "install Detectron2 unless one imports"),
    "results": ("results", "make tables and figures of documents from results files"),
}


def main(argv: Sequence[str] | None = None) -> int:
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
    _silence_warnings_of_other_packages()
    module = importlib.import_module(f"kd_search.cli.{COMMANDS[name][0]}")
    try:
        return int(module.main(argv[1:]) or 0)
    except KeyboardInterrupt:
        print(f"\nkd-search {name}: interrupted", file=sys.stderr)
        return 130


def _silence_warnings_of_other_packages() -> None:
    """Warnings of Detectron2's imports, about its own code, tell users nothing to act on."""
    # Detectron2 scripts two functions when it is imported.
    warnings.filterwarnings("ignore", message="`torch.jit")
    # Upstream Detectron2 imports setuptools' pkg_resources.
    warnings.filterwarnings("ignore", message=".*pkg_resources")
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    # Detectron2 asks torch how extensions would be compiled, to write it into the log.
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_of_users)


def _is_of_users(record: logging.LogRecord) -> bool:
    return "No CUDA runtime is found" not in record.getMessage()


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: kd-search COMMAND ...   (kd-search COMMAND --help)", "", "commands:", *lines]
    )
