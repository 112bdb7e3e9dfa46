"""Runs killed with SIGKILL, at random moments and at what they do to files, and resumed."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

from tests.faults.file_events import Death, count_file_events, deaths, die_at_file_event
from tests.faults.processes import last_words, wait
from tests.faults.tally import Tally
from tests.faults.warm_runs import WarmRuns

KILLED = -signal.SIGKILL


def kill_runs(runs: WarmRuns, number: int, seed: int = 0) -> Tally:
    """Kill so many runs at any moment, and resume them."""
    draw, tally = random.Random(seed), Tally()
    start = time.monotonic()
    runs.whole()
    seconds = time.monotonic() - start
    while tally.tried < number:
        name = f"kill-{tally.tried}"
        process = runs.start(name)
        time.sleep(draw.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)  # one that has ended is there until it is waited for
        if wait(process) == KILLED:
            tally.add(name, _resumed(runs, name))
        else:
            runs.forget(name)
    return tally


def kill_at_file_events(runs: WarmRuns, number: int, seed: int = 0) -> Tally:
    """Kill so many runs at events spread over all that a run does to files, and resume them.

    Every third is killed again while it is resumed.
    """
    draw, tally = random.Random(seed), Tally()
    counted = runs.folder / "file-events"
    runs.whole(*_own_cache(runs, "whole"), prepare=count_file_events(runs.place("whole"), counted))
    for death in deaths(counted, number, draw):
        name = f"event-{death.event}-torn-{death.torn:g}"
        tally.add(name, _killed_at(runs, name, death, draw if tally.tried % 3 == 2 else None))
    return tally


def _killed_at(runs: WarmRuns, name: str, death: Death, again: random.Random | None) -> str:
    options, folder = _own_cache(runs, name), runs.place(name)
    status = runs.run(name, *options, prepare=die_at_file_event(folder, death))
    if status != KILLED:
        return f"ended with status {status} before it could be killed"
    if again is not None:
        second = Death(again.randrange(1, death.event + 1), again.choice((0.0, 0.5, 1.0)))
        status = _resume(runs, name, *options, prepare=die_at_file_event(folder, second))
        if status not in (KILLED, 0):
            return f"resumed with status {status}: {last_words(runs.log(name))}"
    return _resumed(runs, name, *options)


def _own_cache(runs: WarmRuns, name: str) -> tuple[str, ...]:
    return (f"--data.cache_dir={runs.place(name)}/cache",)


def _resumed(runs: WarmRuns, name: str, *options: str) -> str:
    """What was lost; empty if nothing was."""
    status = _resume(runs, name, *options)
    if status:
        return f"resumed with status {status}: {last_words(runs.log(name))}"
    return runs.difference(name)


def _resume(runs: WarmRuns, name: str, *options: str, **how: Any) -> int:
    """Go on as the documentation says: with the run's own config where it has been written."""
    saved = runs.run_dir(name) / "config.yaml"
    config = saved if saved.exists() else runs.config
    return runs.run(name, "--resume=auto", *options, config=config, **how)
