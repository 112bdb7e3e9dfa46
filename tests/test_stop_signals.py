"""A signal ends a program with its status, wherever it is held up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WAITS_FOR_A_RANK = """
import datetime, socket, torch.distributed
from pgprune_lightning import stop_signals
stop_signals.SECONDS_TO_END = 0.2
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
with stop_signals.exit_at_stop_signals():
    print("ready", flush=True)
    half_an_hour = datetime.timedelta(minutes=30)
    torch.distributed.TCPStore("127.0.0.1", port, 2, False, timeout=half_an_hour)
"""
ENDS_BY_ITSELF = """
import os, signal, time
from pgprune_lightning import stop_signals
stop_signals.SECONDS_TO_END = 0.1
with stop_signals.exit_at_stop_signals():
    signal.signal(signal.SIGTERM, lambda *_: None)  # as a run that saves first
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, stop_signals._exit)
        os.kill(os.getpid(), signal.SIGTERM)
    os.wait()
    print("ready", flush=True)
    time.sleep(1)
print("done", flush=True)
"""


def _stopped(program: str, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    return subprocess.CompletedProcess(program, process.returncode, rest)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_rank_that_waits_for_another_ends(number: signal.Signals, status: int) -> None:
    """Its main thread is in a call that no Python handler interrupts."""
    assert _stopped(WAITS_FOR_A_RANK, number).returncode == status


def test_a_handler_of_its_own_and_children_are_left_alone() -> None:
    ended = _stopped(ENDS_BY_ITSELF, signal.SIGTERM)
    assert (ended.returncode, ended.stdout) == (0, "done\n")
