"""The program in seconds, many times: forked from a process that has imported everything."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from tqdm import tqdm

from pgprune_lightning.cli import main
from tests.run_traces import recorded_steps
from tests.tiny_commands import Outcome, refused

HANGS_AFTER = 120.0
"""Seconds after which a process counts as hanging."""


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    trace: Path | None = None,
    prepare: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
) -> int:
    """Fork the program and return its process id.

    Args:
        arguments: What follows the program's name.
        log: Where all that it prints is appended.
        trace: Where the steps of a `fit` are appended.
        prepare: Called in the new process before the program.
        environment: Variables of the new process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(number, 1)
        os.dup2(number, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.environ.update(environment or {})
        faulthandler.register(signal.SIGQUIT)
        # Its own lock is shared by all that were forked: one that is killed keeps it for ever.
        tqdm.set_lock(threading.RLock())
        if prepare is not None:
            prepare()
        with nullcontext() if trace is None else recorded_steps(trace):
            status = main(list(arguments))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # what pytest or the caller would do at exit is not for this process


def wait(process: int, timeout: float = HANGS_AFTER) -> int:
    """Wait for a process and return its status; kill what hangs, whose status is then -9."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGQUIT)  # its log then says where it hangs
    time.sleep(1.0)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGKILL


def refusal(status: int, log: Path, *phrases: str) -> str:
    """What is wrong with how a process has refused; empty if it did so in one clear line."""
    if status != 2:
        return f"ended with status {status}, and should have refused: {last_words(log)}"
    try:
        refused(Outcome(status, "", log.read_text()), *phrases)
    except (AssertionError, ValueError) as error:
        return str(error).splitlines()[0][:300]
    return ""


def complaint(log: Path) -> str:
    """What is wrong with how a process has said that it could not go on; empty if nothing is."""
    lines = log.read_text().rstrip().splitlines()
    is_clear = lines and lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return "" if is_clear else f"ended without a clear line: {last_words(log)}"


def last_words(log: Path) -> str:
    """The end of what a process has printed, in one line."""
    said = log.read_text(errors="replace")[-2000:]
    lines = [line.strip(" ^~") for line in said.splitlines()]
    return " | ".join([line for line in lines if line][-4:])
