"""Runs that replace trainings, for the tests of what starts and collects them."""

import json
import sys

from kd_search.experiments import Run, settings_of

CONFIG = "projects/DetectorKD/configs/generated/teacher_r18_fpn64.yaml"

#: Writes its result, fails, or waits until it is told to stop.
FAKE_RUN = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
settings, what = sys.argv[2:4]
(folder / "starts").open("a").write("x")
signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").touch(), os._exit(143)))
if what == "fail":
    sys.exit("error: the reason")
(folder / "settings.json").write_text(settings)
if what == "hang":
    (folder / "ready").touch()
    time.sleep(60)
(folder / "result.json").write_text(json.dumps({"metrics": {"AP": float(what)}}))
"""


class FakeRun(Run):
    what = "1"

    def command(self, **kwargs):
        settings = json.dumps(settings_of(self.config))
        return [sys.executable, "-c", FAKE_RUN, str(self.folder), settings, self.what]


def fake(folder, what: str, *opts) -> FakeRun:
    """A run in ``folder`` that ends with the AP ``what``, with "fail", or not: "hang"."""
    run = FakeRun(folder.name, CONFIG, list(opts), folder)
    run.what = what
    return run


def starts(run: Run) -> int:
    """How often it was started."""
    path = run.folder / "starts"
    return len(path.read_text()) if path.exists() else 0
