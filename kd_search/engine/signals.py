"""Ctrl-C and kill, held back until the training state is whole."""

import os
import signal
import threading
from contextlib import contextmanager
from typing import Optional

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nStopping after this iteration, with a checkpoint. Ctrl-C again: at once.\n"


class StopSignals:
    """While entered, SIGINT and SIGTERM are remembered instead of stopping the process.

    The trainer asks :meth:`requests` in every step, finishes the step, saves, and raises
    :func:`stop_error`. A second Ctrl-C stops at once. Only the main thread of a process can
    receive signals; entered in another thread, this does nothing.
    """

    def __init__(self):
        self.received: Optional[int] = None
        self._at_once = False
        self._held = False
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        self.received = None
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def requests(self) -> tuple[bool, bool]:
        """Whether this process received (SIGINT, SIGTERM)."""
        return self.received == signal.SIGINT, self.received == signal.SIGTERM

    @contextmanager
    def at_once(self):
        """Inside, a signal raises :func:`stop_error` where it hits: for work that may be lost."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    @contextmanager
    def held(self):
        """Inside, no signal raises anything: for the writing of a checkpoint."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._pid:
            return  # in a forked process, which inherited the handler but not the duty
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
def interrupts_blocked():
    """Inside, processes are started that no Ctrl-C reaches; one for this process comes after.

    A terminal sends Ctrl-C to every process of a run. Loader workers must outlive it: the step that
    is to be finished may need them. A blocked signal is inherited, whatever way they are started.
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
    """What ends a process that was asked to stop: KeyboardInterrupt, or exit status 143."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
