"""The demo on a tiny set, run once for all processes of a test run."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tiny import REPO
from trained import locked, shared_folder


def demo_command(folder: Path) -> list[str]:
    """The command that writes this folder, to be started where the folder is or will be."""
    command = [sys.executable, str(REPO / "tools/demo.py"), "--preset", "tiny"]
    return [*command, "--output", folder.name]


@cache
def tiny_demo() -> tuple[Path, str]:
    """Folder and output of the demo in a new process of Python; do not change the folder."""
    folder = shared_folder() / "demo" / "straight"
    folder.parent.mkdir(exist_ok=True)
    output = folder.with_name("output")
    with locked(output):
        if not output.exists():
            done = subprocess.run(
                demo_command(folder),
                cwd=folder.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert done.returncode == 0, done.stdout[-3000:]
            output.write_text(done.stdout)
    return folder, output.read_text()
