"""Signals that ask a run to stop, and the exit statuses that say which one it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL: the same command, started again with `--resume auto`, goes on."""
EXIT_INTERRUPTED = 130

STATUS_OF = {
    signal.SIGTERM: EXIT_PREEMPTED,
    signal.SIGUSR1: EXIT_PREEMPTED,
    signal.SIGINT: EXIT_INTERRUPTED,
}


@contextmanager
def exit_at_stop_signals() -> Iterator[None]:
    """End the program at once with the status of its signal, where there is nothing to save.

    The signals that follow are ignored while it ends. Outside of the main thread, where Python
    takes no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _exit) for number in STATUS_OF}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    ignore_stop_signals()
    raise SystemExit(STATUS_OF[signal.Signals(number)])


def ignore_stop_signals() -> None:
    """Leave stopping to another process: schedulers send signals to workers too."""
    for number in STATUS_OF:
        signal.signal(number, signal.SIG_IGN)


@dataclass
class StopRequest:
    """Whether a stop was asked for.

    Args:
        status: The exit status that the signal asks for; 0: none came.
    """

    status: int = 0


@contextmanager
def noted_stop_signals() -> Iterator[StopRequest]:
    """Note the first stop signal instead of ending, so that a step is finished and saved first.

    Outside of the main thread nothing is changed, as for `exit_at_stop_signals`.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if not request.status:
            request.status = STATUS_OF[signal.Signals(number)]
            # Not print(): the signal may have come in the midst of one.
            os.write(2, f"\n{signal.Signals(number).name}: stops after this step.\n".encode())

    before = {number: signal.signal(number, note) for number in STATUS_OF}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
