"""Signals that ask this process to stop: SIGINT, SIGTERM, and the warnings of Slurm (SIGUSR1) and submitit (SIGUSR2).

The first signal is a request. Code that can stop in order runs in `deferred()`, and looks at `requested` where it can
stop. In other code the signal raises `Interrupted`. A second SIGINT or SIGTERM ends the process at once: images and
records are written atomically, so nothing that is finished gets lost.

A thread reads the signals, because Python runs a handler only between two instructions of the main thread, which may be
in a call of a library for minutes.
"""

from __future__ import annotations

import _thread
import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

ENDS_AT_ONCE = (signal.SIGINT, signal.SIGTERM)
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
_SAME_REQUEST_S = 1.0
"""Signals within this time are one request: a terminal signals every process, and then a launcher does it again."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop while it did something that has no result yet."""


class SignalWatch:
    """Whether a signal asked this process to stop. There is one per process, because signals are."""

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the first signal, or what another rank said."""
        self._first_signal_s: float | None = None
        self._is_deferred = False
        self._has_raised = False
        self._receiver: socket.socket | None = None

    def listen(self) -> None:
        """Handle the signals from now on. Only the main thread may call it."""
        for number in (*ENDS_AT_ONCE, *WARNINGS):
            signal.signal(number, self._handle)
        if self._receiver is None:
            self._receiver, sender = socket.socketpair()
            sender.setblocking(False)
            signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._receiver,), name="signals", daemon=True).start()

    def request(self, reason: str) -> None:
        """Ask this process to stop, as a signal does. Any thread may call it."""
        if self.requested is None:
            self.requested = reason
            if not self._is_deferred:
                _thread.interrupt_main(WARNINGS[0])

    def check(self) -> None:
        """Raise `Interrupted` if a stop was requested."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def deferred(self) -> Generator[None]:
        """Within this context a request only sets `requested`, and the code looks at it where it can stop."""
        with self._mode(is_deferred=True):
            yield

    @contextmanager
    def raising(self) -> Generator[None]:
        """Within this context a request raises `Interrupted`: a part of deferred code that takes long."""
        with self._mode(is_deferred=False):
            self.check()
            yield

    @contextmanager
    def _mode(self, *, is_deferred: bool) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():  # signals concern the main thread only
            yield
            return
        before, self._is_deferred = self._is_deferred, is_deferred
        try:
            yield
        finally:
            self._is_deferred = before

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Runs in the main thread, after its current call has returned. It raises once, so that cleanup can end."""
        self.requested = self.requested or signal.Signals(number).name
        if not self._is_deferred and not self._has_raised:
            self._has_raised = True
            raise Interrupted(self.requested)

    def _watch(self, receiver: socket.socket) -> None:
        while numbers := receiver.recv(64):
            for number in numbers:
                self._receive(number)

    def _receive(self, number: int) -> None:
        if number not in (*ENDS_AT_ONCE, *WARNINGS):
            return
        self.requested = self.requested or signal.Signals(number).name
        now_s = time.monotonic()
        if self._first_signal_s is None:
            self._first_signal_s = now_s
        elif number in ENDS_AT_ONCE and now_s - self._first_signal_s > _SAME_REQUEST_S:
            os._exit(128 + number)


interruption = SignalWatch()
"""The watch of this process. Before `listen`, signals have their usual effects."""
