"""SIGTERM and SIGINT end a training run cleanly: the step is finished, a checkpoint is saved.

The exit code is 128 plus the signal's number, as shells count: 143 after SIGTERM (pre-emption, ``kill``),
130 after SIGINT (Ctrl-C). A second signal stops at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.utils import comm

__all__ = ["SIGNALS", "StopRequest", "TrainingStopped", "exit_code", "passed_on_signals"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on what the terminal or the scheduler sends to all processes anyway: signals that come
# together are one.
SAME_SIGNAL_SECONDS = 1.0


def exit_code(number: int) -> int:
    """Exit code of a program that a signal has ended."""
    return 128 + number


class TrainingStopped(SystemExit):
    """Raised in all processes of a training when it has saved a checkpoint because of a signal."""


class StopRequest:
    """Remembers that a signal has come, until the training loop asks for it."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that has come
        self._time = 0.0
        self._owner = 0
        self._immediate = False
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on, where that is possible: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._owner = os.getpid()
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def uninstall(self) -> None:
        """Give the signals back to whom they belonged."""
        _restore(self._previous)
        self._previous = {}

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside, a signal ends the program at once; for work that a checkpoint has been saved before."""
        if self.number:
            raise SystemExit(exit_code(self.number))
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def agreed(self) -> int:
        """Number of the signal that has come to any process, else 0; all processes have to call."""
        return max(comm.all_gather(self.number))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a data-loading process: the one that trains decides
            return
        if self.number:
            if time.monotonic() - self._time > SAME_SIGNAL_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self._time = number, time.monotonic()
        if self._immediate:
            raise SystemExit(exit_code(number))
        if comm.is_main_process():
            name = signal.Signals(number).name
            # Neither print nor logging: the signal may have come in the middle of one.
            message = f"{name}: stopping after this step with a checkpoint; another {name} stops at once.\n"
            os.write(2, message.encode())


@contextmanager
def passed_on_signals() -> Iterator[None]:
    """Inside, this process passes signals on to the processes that it has started, and waits for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    previous: dict[int, Any] = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(previous)


def _restore(handlers: Mapping[int, Any]) -> None:
    """Give signals back to the handlers that ``signal.signal`` returned; None: not set by Python."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
