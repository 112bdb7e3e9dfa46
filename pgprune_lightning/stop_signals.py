"""Signals that ask a run to stop, and the exit statuses that say which one it was."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL: the same command, started again with `--resume auto`, goes on."""
EXIT_INTERRUPTED = 130

SECONDS_TO_END = 5.0
"""How long a signal may wait for Python to notice it, where there is nothing to save."""

STATUS_OF = {
    signal.SIGTERM: EXIT_PREEMPTED,
    signal.SIGUSR1: EXIT_PREEMPTED,
    signal.SIGINT: EXIT_INTERRUPTED,
}


class ExplainedExit(SystemExit):
    """Ends the program after a signal, where the user has been told how to go on."""


@contextmanager
def exit_at_stop_signals(advice: Callable[[], str] | None = None) -> Iterator[None]:
    """End the program at once with the status of its signal, where there is nothing to save.

    The signals that follow are ignored while it ends. Outside of the main thread, where Python
    takes no handlers, nothing is changed.

    Args:
        advice: What is left and how to go on, written when a signal has ended what is inside;
            None: that is said elsewhere.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _exit) for number in STATUS_OF}
    try:
        with _ended_where_no_handler_runs():
            yield
    except SystemExit as end:
        if advice is not None and was_stopped(end):
            sys.stderr.write(f"\nStopped. {advice()}\n")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ended_where_no_handler_runs() -> Iterator[None]:
    """End the program from another thread where the main one is held up outside of Python.

    A rank that waits for another to connect waits half an hour, and runs no handler meanwhile.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(read, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(write)
        thread.join()
        os.close(read)


def _watch(read: int, over: threading.Event) -> None:
    while received := os.read(read, 1):
        number = received[0]
        # Once the handler has run, or a run that saves has brought its own, it is theirs to end.
        stuck = number in STATUS_OF and not over.wait(SECONDS_TO_END)
        if stuck and signal.getsignal(number) is _exit:
            os._exit(STATUS_OF[signal.Signals(number)])


def _forget_watch() -> None:
    signal.set_wakeup_fd(-1)  # the pipe is the parent's


os.register_at_fork(after_in_child=_forget_watch)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    ignore_stop_signals()
    raise SystemExit(STATUS_OF[signal.Signals(number)])


def was_stopped(end: SystemExit) -> bool:
    """Whether a signal has ended the program, and the user does not know yet how to go on."""
    return end.code in STATUS_OF.values() and not isinstance(end, ExplainedExit)


def ignore_stop_signals() -> None:
    """Leave stopping to another process: schedulers send signals to workers too."""
    for number in STATUS_OF:
        signal.signal(number, signal.SIG_IGN)
