"""Signals that ask a run to stop, and the exit statuses that say which one it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
