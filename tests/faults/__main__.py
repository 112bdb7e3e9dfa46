"""`make test-faults`: every fault that a run must survive, many times; the last line counts.

Each experiment can be had with less of it, and is left out at 0.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.tally import Tally

# Before the libraries are imported: a forked process must find no threads of its parent's.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline")

EXPERIMENTS = {
    "command-kills": (12, "times that each other command is killed at what it does to files"),
    "kills": (100, "runs killed with SIGKILL at any moment"),
    "file-kills": (100, "runs killed with SIGKILL at what they do to files"),
    "soak": (2000, "steps of a run whose memory and open files must not grow"),
    "pairs": (20, "pairs of processes in one folder at once"),
    "plan-edits": (1000, "edits of a plan; there are fewer"),
    "bad-input": (1000, "kinds of bad input; there are fewer"),
    "stops": (20, "runs of two processes that are sent SIGTERM"),
    "lost-ranks": (10, "runs of two processes of which one is killed"),
    "disks": (5, "times that each command meets a full disk"),
    "metrics": (1000, "kinds of damage to the metrics of a stopped run; there are fewer"),
}
"""How much there is of each, and what it counts; the longest first."""


def main() -> int:
    """Run the experiments; the status is 1 where something was lost."""
    chosen, data = _arguments(), os.environ.get("PGPRUNE_DATA")
    if not data:
        print("PGPRUNE_DATA is not set: it names the folder with the tests' data", file=sys.stderr)
        return 2
    from tests.faults.side_by_side import side_by_side

    print(f"seed {chosen['seed']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pgprune-faults-") as scratch:
        os.environ["PGPRUNE_CACHE"] = f"{scratch}/cache"
        made = _experiments(Path(data), chosen["seed"])
        asked = {
            name: partial(made[name], number=chosen[name]) for name in EXPERIMENTS if chosen[name]
        }
        total = side_by_side(asked, Path(scratch), chosen["jobs"])
    print(f"faults: {total}")
    return 1 if total.losses else 0


def _experiments(data: Path, seed: int) -> dict[str, Callable[..., Tally]]:
    """The experiments by name; each is given a folder and how much there is to be of it."""
    from tests.faults.bad_input import give_bad_input, make_tiny_runs
    from tests.faults.command_kills import kill_commands
    from tests.faults.commands import make_commands
    from tests.faults.damaged_metrics import damage_metrics
    from tests.faults.edited_plans import edit_plans
    from tests.faults.full_disks import fill_disks
    from tests.faults.kills import kill_at_file_events, kill_runs
    from tests.faults.pairs import overlap
    from tests.faults.soak import soak
    from tests.faults.stops import lose_ranks, stop_runs
    from tests.faults.warm_runs import make_warm_runs

    made = partial(make_warm_runs, data)
    commands = partial(make_commands, data)
    return {
        "command-kills": lambda folder, number: kill_commands(commands(folder), number, seed),
        "kills": lambda folder, number: kill_runs(made(folder), number, seed),
        "file-kills": lambda folder, number: kill_at_file_events(made(folder), number, seed),
        "soak": lambda folder, number: soak(made(folder), number),
        "pairs": lambda folder, number: overlap(commands(folder), number, seed),
        "plan-edits": lambda folder, number: edit_plans(commands(folder), number),
        "bad-input": lambda folder, number: give_bad_input(make_tiny_runs(folder), number),
        "stops": lambda folder, number: stop_runs(made(folder), number, seed),
        "lost-ranks": lambda folder, number: lose_ranks(made(folder), number, seed),
        "disks": lambda folder, number: fill_disks(commands(folder), number),
        "metrics": lambda folder, number: damage_metrics(made(folder), number),
    }


def _arguments() -> dict[str, int]:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    for name, (number, what) in EXPERIMENTS.items():
        parser.add_argument(f"--{name}", type=int, default=number, dest=name, help=what)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="experiments at once")
    parser.add_argument("--seed", type=int, default=random.randrange(2**16), help="of the moments")
    return vars(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
