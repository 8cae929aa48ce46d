"""A server in a process of its own: python -m tests.server.process FOLDER PORT_FILE [OPTIONS].

FOLDER is one of :func:`tests.server.inputs.index`, of which the gallery is served with the network
that finds coloured squares. Options are those of kd-search serve.
"""

import sys
from contextlib import contextmanager

import kd_search.runtime
from kd_search.cli import main
from tests.gallery.fake_searcher import FakeSearcher
from tests.server.inputs import CALIBRATION


class Runtime:
    """In place of :class:`kd_search.runtime.PersonSearcher`."""

    @staticmethod
    def load(path, threads=None):
        searcher = FakeSearcher()
        searcher.manifest["calibration"] = CALIBRATION
        return searcher


@contextmanager
def running(folder, *options):
    """Start one; gives the process, its address and a function that reads its log."""
    import re
    import subprocess

    command = [sys.executable, "-u", "-m", "tests.server.process", str(folder), *options]
    log = open(folder / "server.log", "w+", encoding="utf-8")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        found = re.match(r"http://\S+:\d+/", line)
        assert found, line + (folder / "server.log").read_text()
        yield process, found[0], (folder / "server.log").read_text
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
        log.close()


if __name__ == "__main__":
    kd_search.runtime.PersonSearcher = Runtime
    folder, *options = sys.argv[1:]
    arguments = ["--gallery", f"{folder}/people", "--model", "student.onnx", "--port", "0"]
    sys.exit(main(["serve", *arguments, *options]))
