"""Experiments side by side, each in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults.tally import Tally


def side_by_side(experiments: dict[str, Callable[[Path], Tally]], folder: Path, jobs: int) -> Tally:
    """Run experiments, so many at once, and print what each has found.

    Args:
        experiments: Each is given an empty folder.
        folder: Where these lie.
        jobs: How many run at once.

    Returns:
        The sum; an experiment that breaks off counts as a loss.
    """
    total, waiting, running = Tally(), dict(experiments), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = next(iter(waiting))
            running[_start(waiting.pop(name), folder / name)] = name, time.monotonic()
        process, _ = os.wait()
        name, start = running.pop(process)
        tally = _found(folder / name)
        print(f"{name}: {tally} ({time.monotonic() - start:.0f} s)", flush=True)
        total += tally
    return total


def _start(experiment: Callable[[Path], Tally], folder: Path) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        folder.mkdir()
        tally = experiment(folder)
        _result(folder).write_text(json.dumps([tally.tried, tally.losses]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _found(folder: Path) -> Tally:
    if not _result(folder).exists():
        return Tally(1, [f"{folder.name}: broke off"])
    tried, losses = json.loads(_result(folder).read_text())
    return Tally(tried, losses)


def _result(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")
