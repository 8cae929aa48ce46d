"""Processes of Python that are forked from one that has imported torch, Detectron2 and kd_search.

They spare the imports, which take longer than most of what tests do in a process of its own. In all
else they are as new: own arguments, environment, working folder, module search path, standard
streams, signals and exit status. What a process imports, or reads from the environment while it
does, needs :mod:`subprocess`; and at least one test of each command starts a new interpreter.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Optional, Union
from unittest import mock

import torch
import torch.multiprocessing

REPO = Path(__file__).resolve().parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("tests.forked", "kd_search.cli", "kd_search.engine", "kd_search.experiments.train_run"),
        *("kd_search.export.model_file", "kd_search.pipeline.demo", "kd_search.pipeline.run"),
        *("kd_search.gallery.indexing", "kd_search.gallery.opening", "torch.distributed.run"),
    ]
)


class Forked:
    """As :class:`subprocess.Popen` of a command whose first word is Python, with text as output.

    Args:
        command: Python, options of it (which are ignored), and a script, ``-m`` and a module, or
            ``-c`` and code, with its arguments.
        stdout: file to append the standard output to, by default one that :meth:`communicate`
            reads.
        stderr: the same of errors; ``subprocess.STDOUT`` puts them where the output is.
        cwd: working folder, by default the current one.
        env: the environment, by default the current one. As in a new process, folders of its
            PYTHONPATH are searched for modules, and a ``sitecustomize.py`` in one of them runs.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        stdout: Optional[Path] = None,
        stderr: Union[Path, int, None] = None,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
    ):
        self._folder = tempfile.TemporaryDirectory()
        self.stdout = Path(stdout or Path(self._folder.name, "stdout")).absolute()
        errors = self.stdout if stderr == subprocess.STDOUT else stderr
        self.stderr = Path(errors or Path(self._folder.name, "stderr")).absolute()
        words = _without_options([str(word) for word in command[1:]])
        streams = str(self.stdout), str(self.stderr)
        place = words, streams, str(cwd or os.getcwd()), dict(os.environ if env is None else env)
        self._process = _CONTEXT.Process(target=_main, args=place)
        paths = [str(REPO), os.environ.get("PYTHONPATH", "")]
        # The first start starts the process that has the imports: of this checkout.
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")  # of pytest, which is not imported
        try:
            with mock.patch.dict(os.environ, environment):
                self._process.start()
        finally:
            sys.modules["__main__"] = main
        self.pid = self._process.pid

    @property
    def returncode(self) -> Optional[int]:
        return self._process.exitcode

    def poll(self) -> Optional[int]:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: Optional[float] = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: Optional[float] = None) -> tuple[str, str]:
        """Wait, and return output and errors; the first has both if they have one file."""
        self.wait(timeout)
        files = [self.stdout] if self.stderr == self.stdout else [self.stdout, self.stderr]
        texts = [file.read_text() if file.exists() else "" for file in files]
        return texts[0], "".join(texts[1:])


def run(
    command: Sequence[object],
    *,
    cwd: Optional[Path] = None,
    env: Optional[Mapping[str, str]] = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess:
    """As :func:`subprocess.run` with its output as text; see :class:`Forked`."""
    process = Forked(command, cwd=cwd, env=env)
    try:
        output, errors = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def new_python(command: Sequence[object], **options) -> subprocess.CompletedProcess:
    """The same with a new interpreter."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, **options)


def _without_options(words: list[str]) -> list[str]:
    while words[0] in ("-u", "-W"):
        del words[: 1 + (words[0] == "-W")]
    return words


def _main(words: list[str], streams, folder: str, environment: dict[str, str]) -> None:
    """What a new process of Python does before it runs the script, and the script."""
    for descriptor, (stream, path) in enumerate(zip((sys.stdout, sys.stderr), streams), 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
        stream.reconfigure(line_buffering=True)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # of the imports nothing becomes free
    # Not what multiprocessing sets in its processes, such as the way in which theirs start.
    multiprocessing.set_start_method(None, force=True)
    if not torch.cuda.is_available():
        # Ranks of a training are forked as well.
        ranks = torch.multiprocessing.start_processes
        torch.multiprocessing.start_processes = partial(ranks, start_method="fork")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folders = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = folder if words[0] in ("-m", "-c") else os.path.dirname(os.path.abspath(words[0]))
    installed = (sys.prefix, sys.base_prefix)
    sys.path[:] = [first, *folders, *(path for path in sys.path if path.startswith(installed))]
    for path in folders:
        with contextlib.suppress(FileNotFoundError):
            runpy.run_path(os.path.join(path, "sitecustomize.py"))
    try:
        _run(words)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _run(words: list[str]) -> None:
    if words[0] == "-c":
        module = types.ModuleType("__main__")
        sys.modules["__main__"], sys.argv = module, ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        with warnings.catch_warnings():
            # It was imported before it is run.
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
