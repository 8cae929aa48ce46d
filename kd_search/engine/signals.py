"""Ctrl-C and kill, held back until the training state is whole."""

import os
import signal
import threading
from contextlib import contextmanager
from typing import Optional

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
            # A forked loader worker got the Ctrl-C meant for all: the trainer still needs it.
            return
        again = self.received is not None and number == signal.SIGINT
        self.received = self.received or number
        if self._held:
            return
        if again or self._at_once:
            raise stop_error(number)
        # Logging is not safe inside a signal handler: it may interrupt a logging call.
        os.write(2, b"\nStopping after this iteration, with a checkpoint. Ctrl-C again: at once.\n")


def stop_error(number: int) -> BaseException:
    """What ends a process that was asked to stop: KeyboardInterrupt, or exit status 143."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
