"""A long run, whose memory and open files must not grow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.faults.tally import Tally
from tests.faults.warm_runs import WarmRuns

MEMORY_GROWTH = 8 * 2**20
"""Bytes by which a run may grow after its first third: allocators settle late."""


def soak(runs: WarmRuns, steps: int) -> Tally:
    """Run so many steps and look at the process now and then.

    Args:
        runs: Where.
        steps: Number of steps, some hundreds at least.
    """
    measured, every, tally = runs.folder / "resources.jsonl", steps // 20, Tally()

    def prepare() -> None:
        from pgprune_lightning.training import PolicyGradientPruning

        training_step = PolicyGradientPruning.training_step

        def step(self: PolicyGradientPruning, batch: Any, batch_idx: int) -> Any:
            if self.global_step % every == 0:
                with measured.open("a") as file:
                    file.write(json.dumps({"step": self.global_step} | _resources()) + "\n")
            return training_step(self, batch, batch_idx)

        PolicyGradientPruning.training_step = step  # type: ignore[method-assign]

    options = (f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={every}")
    often = ("--checkpoint.every_n_train_steps=10",)
    status = runs.run("soak", *options, *often, prepare=prepare, timeout=3600.0)
    rows = [json.loads(line) for line in measured.read_text().splitlines()]
    settled, last = rows[len(rows) // 3], rows[-1]
    grown = last["memory"] - settled["memory"]
    loss = f"status {status}" if status else ""
    if grown > MEMORY_GROWTH:
        loss = f"memory grew by {grown / 2**20:.1f} MB"
    if last["files"] > settled["files"]:
        loss = f"open files grew from {settled['files']} to {last['files']}"
    print(f"soak: {steps} steps, memory {grown / 2**20:+.1f} MB, {last['files']} open files")
    tally.add("soak", loss)
    return tally


def _resources() -> dict[str, int]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }
