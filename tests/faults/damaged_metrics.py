"""Runs whose metrics are damaged while they are stopped: they go on, and lose nothing else."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from tests.damaged_files import METRICS
from tests.faults.processes import last_words
from tests.faults.tally import Tally
from tests.faults.warm_runs import WarmRuns

STOPPED = "stopped"
AFTER_STEP = 7


def damage_metrics(runs: WarmRuns, number: int) -> Tally:
    """Damage the metrics of so many copies of a stopped run in one way each, and resume them."""
    tally = Tally()
    runs.whole()
    status = runs.run(STOPPED, prepare=_stop_in_the_next_step)
    if status != 75:
        raise RuntimeError(f"status {status}: {last_words(runs.log(STOPPED))}")
    for name in list(METRICS)[:number]:
        tally.add(f"metrics: {name}", _resumed(runs, name))
    return tally


def _stop_in_the_next_step() -> None:
    from pgprune_lightning.training import PolicyGradientPruning

    training_step = PolicyGradientPruning.training_step

    def step(self: PolicyGradientPruning, batch: Any, batch_idx: int) -> Any:
        if self.global_step == AFTER_STEP - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch, batch_idx)

    PolicyGradientPruning.training_step = step  # type: ignore[method-assign]


def _resumed(runs: WarmRuns, name: str) -> str:
    run_dir = runs.run_dir(name)
    shutil.copytree(runs.place(STOPPED), runs.place(name))
    shutil.copy(runs.trace(STOPPED), runs.trace(name))
    metrics = run_dir / "metrics.csv"
    METRICS[name](metrics)
    damaged = metrics.read_bytes() if metrics.is_file() else None
    if status := runs.run(name, "--resume=auto"):
        return f"resumed with status {status}: {last_words(runs.log(name))}"
    if not runs.difference(name):
        return ""  # it could be read all the same
    if lost := runs.difference(name, besides=("metrics", "names")):
        return lost
    kept = [path for path in run_dir.glob("metrics*") if path != metrics]
    is_kept = any(path.is_dir() if damaged is None else _holds(path, damaged) for path in kept)
    if damaged != b"" and not is_kept:
        return "the damaged file was not kept"
    rows, expected = _rows(metrics), _rows(runs.run_dir("whole") / "metrics.csv")
    since = [row for row in expected if int(row["step"]) >= AFTER_STEP]
    return "" if rows[-len(since) :] == since else "rows of steps that followed are missing"


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as opened:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(opened)]
