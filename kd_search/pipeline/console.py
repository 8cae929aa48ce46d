"""What the pipeline prints: a line for each step. What Detectron2 logs goes to files."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

#: Loggers that write to the files of a run.
_LOGGERS = ("detectron2", "kd_search")
#: Where lines cannot be overwritten, a training prints its progress this often.
_PRINTS = 10


class Console:
    """Prints the steps, their progress and warnings.

    On a terminal the progress overwrites the line of its step; elsewhere it is printed for every
    tenth of a training.
    """

    def __init__(self, verbose: bool = False, terminal: Optional[bool] = None) -> None:
        """
        Args:
            verbose: print everything that is logged, and every progress.
            terminal: whether lines can be overwritten; ``None``: if standard output is a terminal.
        """
        self.verbose = verbose
        self._overwrites = not verbose and (sys.stdout.isatty() if terminal is None else terminal)
        self._heading, self._pending, self._shown = "", "", 0

    def begin(self, heading: str, more: str = "") -> None:
        """Start the line of a step."""
        self._heading, self._shown = heading, 0
        self._show(f"{heading}{more} ...")

    def progress(self, text: str, share: float) -> None:
        """The progress of the step.

        Args:
            text: to show.
            share: of the training that is done, 0 to 1.
        """
        if self._overwrites or self.verbose or int(_PRINTS * share) > self._shown:
            self._shown = int(_PRINTS * share)
            self._show(f"{self._heading}: {text}")

    def end(self, text: str) -> None:
        """End the line of the step."""
        self._clear()
        print(f"{self._heading}: {text}", flush=True)

    def line(self, text: str) -> None:
        """A line of its own; the line of the step goes on below it."""
        pending = self._pending
        self._clear()
        print(text, flush=True)
        if pending:
            self._show(pending)

    def _finish_line(self) -> None:
        if self._pending:
            print(flush=True)
        self._pending = ""

    def _show(self, text: str) -> None:
        self._clear()
        if self._overwrites:
            # A line that the terminal wraps cannot be erased.
            self._pending = text[: shutil.get_terminal_size().columns - 1]
            print(self._pending, end="", flush=True)
        else:
            print(text, flush=True)

    def _clear(self) -> None:
        if self._pending:
            # To the start of the line, and erase it.
            print("\r\033[K", end="")
        self._pending = ""

    @contextmanager
    def showing_logs(self) -> Iterator[None]:
        """Show warnings and errors of the loggers, or everything with ``verbose``."""
        handler = _Handler(self)
        handler.setLevel(logging.INFO if self.verbose else logging.WARNING)
        handler.setFormatter(
            logging.Formatter("[%(asctime)s %(name)s]: %(message)s", "%m/%d %H:%M:%S")
            if self.verbose
            else logging.Formatter("%(levelname)s: %(message)s")
        )
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
        try:
            for logger in loggers:
                # Handlers of files stay. With a level, trainers add none for the console.
                kept = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
                logger.handlers[:] = [*kept, handler]
                logger.setLevel(logging.DEBUG)
                logger.propagate = False
            yield
        finally:
            self._finish_line()
            for logger, (level, propagate, handlers) in zip(loggers, before):
                logger.handlers[:] = handlers
                logger.setLevel(level)
                logger.propagate = propagate


class _Handler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.line(self.format(record))


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append what trainings and evaluations log to a file as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(
        logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    )
    handler.setLevel(logging.INFO)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
