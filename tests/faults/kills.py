"""Runs killed with SIGKILL at random moments, and resumed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgprune_lightning import atomic_write
from tests.faults.tally import Tally
from tests.faults.warm_runs import WarmRuns, wait

SAVE_STEPS = ("_create_in", "fsync", "replace")


def kill_runs(runs: WarmRuns, number: int, seed: int = 0) -> Tally:
    """Kill and resume so many runs: two thirds at any moment, one third within a save."""
    draw, tally = random.Random(seed), Tally()
    start = time.monotonic()
    if runs.run("whole"):
        raise RuntimeError(runs.log("whole").read_text()[-2000:])
    seconds = time.monotonic() - start
    while tally.tried < number:
        name = f"kill-{tally.tried}"
        if tally.tried % 3 == 2:
            killed = runs.run(name, prepare=_die_in_a_save(draw)) == -signal.SIGKILL
        else:
            killed = _kill_after(runs.start(name), draw.uniform(0, seconds))
        if not killed and runs.run_dir(name).exists():
            runs.run_dir(name).rename(runs.folder / f"unhurt-{time.monotonic_ns()}")
            runs.trace(name).unlink(missing_ok=True)
            continue
        status = runs.run(name, "--resume=auto")
        loss = f"resumed with status {status}" if status else runs.difference(name, "whole")
        tally.add(name, loss)
    return tally


def _kill_after(process: int, seconds: float) -> bool:
    """Whether the process was still there to be killed."""
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)  # a process that has ended is there until it is waited for
    return wait(process) == -signal.SIGKILL


def _die_in_a_save(draw: random.Random) -> Callable[[], None]:
    """Kill the process before or after a system call of one of its writes."""
    step, countdown, before = draw.choice(SAVE_STEPS), draw.randrange(1, 40), draw.random() < 0.5

    def prepare() -> None:
        owner: Any = {"_create_in": atomic_write, "fsync": os, "replace": Path}[step]
        call, calls = getattr(owner, step), [0]

        def dying(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if before and calls[0] == countdown:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **keywords)
            if calls[0] == countdown:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, step, dying)

    return prepare
