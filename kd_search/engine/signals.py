"""Ctrl-C and kill, deferred until the training state is consistent."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nStopping after this iteration, with a checkpoint. Ctrl-C again: at once.\n"


class StopSignals:
    """Context in which SIGINT and SIGTERM are recorded and do not stop the process.

    The trainer reads :meth:`requests` in every step, finishes the step, saves, and raises
    :func:`stop_error`. A signal after the last step is raised at the end of the context. A second
    Ctrl-C stops at once. Only the main thread of a process can receive
    signals; in another thread the context does nothing.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._at_once = False
        self._held = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.received = None
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(self, error: Optional[type[BaseException]], *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if error is None and self.received is not None:
            # It arrived after the last step, which nothing follows that would stop.
            raise stop_error(self.received)

    def requests(self) -> tuple[bool, bool]:
        """Return whether this process received (SIGINT, SIGTERM)."""
        return self.received == signal.SIGINT, self.received == signal.SIGTERM

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context in which a signal raises :func:`stop_error`, for work that may be lost.

        One that was received since the last step raises it on entry.
        """
        if self.received is not None:
            raise stop_error(self.received)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context in which no signal raises anything: for writing a checkpoint."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # a forked process inherits the handler, but must not use it
        first = self.received is None
        self.received = self.received or number
        if self._held:
            return
        if self._at_once or (not first and number == signal.SIGINT):
            raise stop_error(number)
        if first:
            # Logging is not safe inside a signal handler: it may interrupt a logging call.
            os.write(2, _NOTICE)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Context whose child processes never receive Ctrl-C; one for this process is deferred.

    A terminal sends Ctrl-C to every process of a run. Loader workers must survive it, since the
    step that is to be finished may need them. Children inherit a blocked signal, whatever way they
    are started.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_error(number: int) -> BaseException:
    """Return what ends a process after a signal: KeyboardInterrupt, or SystemExit with 143."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
