"""Runs of two processes that are stopped, or of which one is killed, and resumed."""

from __future__ import annotations

import os
import random
import signal
import socket
import time

from tests.faults.processes import complaint, last_words, wait
from tests.faults.tally import Tally
from tests.faults.warm_runs import WarmRuns

RANKS = (0, 1)


def stop_runs(runs: WarmRuns, number: int, seed: int = 0) -> Tally:
    """Stop and resume so many runs; every fourth gets the signal twice, or on one rank alone."""
    draw, tally = random.Random(seed), Tally()
    seconds, tries = _whole(runs), 0
    while tally.tried < number:
        name = f"stop-{(tries := tries + 1)}"
        loss = _stop(runs, name, draw, seconds, tally.tried % 4)
        if loss is not None:
            tally.add(name, loss)
    return tally


def lose_ranks(runs: WarmRuns, number: int, seed: int = 0) -> Tally:
    """Kill one of two processes in so many runs; the other ends in one line, and both go on."""
    draw, tally = random.Random(seed), Tally()
    _whole(runs)
    for tried in range(number):
        name, lost, left = f"lost-{tried}", tried % 2, (tried + 1) % 2
        processes = _start(runs, name)
        runs.wait_for_steps(f"{name}@0", draw.randrange(1, 8))
        os.kill(processes[lost], signal.SIGKILL)
        statuses, _ = _finish(processes)
        if statuses[left] in (0, -signal.SIGKILL):
            loss = f"ended with {statuses}"
        else:
            loss = complaint(runs.log(f"{name}@{left}")) or _resumed(runs, name)
        tally.add(f"{name}: rank {lost}", loss)
    return tally


def _whole(runs: WarmRuns) -> float:
    """Make the run that nothing happens to; how long it takes, in seconds."""
    statuses, seconds = _finish(_start(runs, "whole"))
    if any(statuses):
        raise RuntimeError(last_words(runs.log("whole@0")))
    return seconds


def _stop(runs: WarmRuns, name: str, draw: random.Random, seconds: float, kind: int) -> str | None:
    """What was lost, empty if nothing was; None if the run had ended before the signal."""
    processes = _start(runs, name)
    if kind == 3:  # one rank alone: only while steps are taken can it tell the other
        runs.wait_for_steps(f"{name}@0", draw.randrange(1, 8))
    else:
        time.sleep(draw.uniform(0.1, seconds))
    for process in processes[:1] if kind == 3 else processes:
        os.kill(process, signal.SIGTERM)
    if kind == 2:
        time.sleep(draw.uniform(0, 0.1))
        for process in processes:
            os.kill(process, signal.SIGTERM)
    statuses, _ = _finish(processes)
    # Before the program runs, a process dies of the signal as any does.
    if statuses == [0, 0]:
        return None
    # One rank may have ended before the signal, which the other got in its report.
    if not set(statuses) <= {0, 75, -signal.SIGTERM}:
        return f"stopped with {statuses}" + _last_words(runs, name, statuses)
    return _resumed(runs, name)


def _resumed(runs: WarmRuns, name: str) -> str:
    """What was lost; empty if nothing was."""
    statuses, _ = _finish(_start(runs, name, "--resume=auto"))
    if any(statuses):
        return f"resumed with {statuses}" + _last_words(runs, name, statuses)
    differences = [runs.difference(f"{name}@{rank}", f"whole@{rank}") for rank in RANKS]
    return "; ".join(filter(None, differences))


def _last_words(runs: WarmRuns, name: str, statuses: list[int]) -> str:
    """What ranks that hung or failed have said last."""
    bad = (-signal.SIGKILL, 1)
    ranks = [rank for rank, status in zip(RANKS, statuses, strict=True) if status in bad]
    return "".join(f"; rank {rank}: {last_words(runs.log(f'{name}@{rank}'))}" for rank in ranks)


def _start(runs: WarmRuns, name: str, *options: str) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{"WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "faults"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", *options)
    return [
        runs.start(
            f"{name}@{rank}",
            *two,
            environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in RANKS
    ]


def _finish(processes: list[int]) -> tuple[list[int], float]:
    start = time.monotonic()
    return [wait(process) for process in processes], time.monotonic() - start
