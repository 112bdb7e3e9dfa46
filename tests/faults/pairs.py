"""Two processes in one folder at once: one works as if it were alone, the other refuses or waits.

A run that goes on waits for the one before it, which may still be saving.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.commands import Command, Commands, Left
from tests.faults.processes import last_words, refusal, wait
from tests.faults.tally import Tally
from tests.faults.warm_runs import WarmRuns

SECONDS_APART = 0.2
"""At most, where two start together: a small part of what each takes."""


def overlap(commands: Commands, number: int, seed: int = 0) -> Tally:
    """Let so many pairs overlap: of `fit` in five ways, and of each other command.

    Args:
        commands: The commands.
        number: How many pairs.
        seed: Of the moments.
    """
    draw, tally = random.Random(seed), Tally()
    pairs = _Fits(commands.runs, draw).kinds
    pairs |= {command.name: _of_command(command, draw) for command in commands.each}
    for tried in range(number):
        kind = list(pairs)[tried % len(pairs)]
        name = f"pair-{tried}"
        tally.add(f"{name} of {kind}", pairs[kind](name))
    return tally


@dataclass(frozen=True)
class _Fits:
    """Pairs of `fit`; each is given a name, and says what was lost."""

    runs: WarmRuns
    draw: random.Random

    @property
    def kinds(self) -> dict[str, Callable[[str], str]]:
        resume = ("--resume=auto",)
        return {
            "equal fits, together": lambda name: self._together(name, resume, resume),
            "different fits, together": lambda name: self._together(
                name, (), ("--model.update.lr=0.5",)
            ),
            "a fit beside one that trains": lambda name: self._later(name, *resume),
            "a fit that moves one that trains aside": lambda name: self._later(
                name, "--existing_run=move_aside"
            ),
            "a requeue of a fit that is stopping": self._requeued,
        }

    def _together(self, name: str, first: tuple[str, ...], second: tuple[str, ...]) -> str:
        given = {f"{name}@a": first, f"{name}@b": second}
        processes = {}
        for rank, options in given.items():
            processes[rank] = self.runs.start(rank, *options)
            time.sleep(self.draw.uniform(0, SECONDS_APART))
        statuses = {rank: wait(process) for rank, process in processes.items()}
        return self._one_won(statuses, given)

    def _later(self, name: str, *options: str) -> str:
        first, second = f"{name}@a", f"{name}@b"
        process = self.runs.start(first)
        self.runs.wait_for_steps(first, self.draw.randrange(1, 8))
        late = self.runs.run(second, *options)
        return self._one_won({first: wait(process), second: late}, {first: (), second: options})

    def _requeued(self, name: str) -> str:
        first, second = f"{name}@a", f"{name}@b"
        process = self.runs.start(first)
        self.runs.wait_for_steps(first, self.draw.randrange(1, 8))
        os.kill(process, signal.SIGTERM)
        requeued = self.runs.start(second, "--resume=auto")
        statuses = [wait(process), wait(requeued)]
        if statuses != [75, 0]:
            return f"ended with {statuses}: {last_words(self.runs.log(second))}"
        with self.runs.trace(first).open("a") as steps:
            steps.write(self.runs.trace(second).read_text())
        return self.runs.difference(first)

    def _one_won(self, statuses: dict[str, int], given: dict[str, tuple[str, ...]]) -> str:
        """One run took all steps; the other took none, and refused or found it finished."""
        winner, loser = sorted(statuses, key=lambda rank: not self.runs.trace(rank).exists())
        if statuses[winner]:
            return f"ended with {statuses}: {last_words(self.runs.log(winner))}"
        if self.runs.trace(loser).exists():
            return "both took steps"
        waited = statuses[loser] == 0 and "--resume=auto" in given[loser]
        wrong = "" if waited else refusal(statuses[loser], self.runs.log(loser))
        return wrong or self.runs.difference(winner, self._alone(given[winner]))

    def _alone(self, options: tuple[str, ...]) -> str:
        """The name of a run with these options that nothing happened to."""
        changed = [option for option in options if option.startswith("--model")]
        name = "-".join(["whole", *changed])
        if not self.runs.run_dir(name).exists() and self.runs.run(name, *changed):
            raise RuntimeError(last_words(self.runs.log(name)))
        return name


def _of_command(command: Command, draw: random.Random) -> Callable[[str], str]:
    whole: list[Left] = []

    def pair(name: str) -> str:
        whole[:] = whole or [command.whole()]
        processes: dict[Path, int] = {}
        for rank in ("a", "b"):
            log = f"{name}@{rank}"
            processes[command.log(log)] = command.start(name, log=log)
            time.sleep(draw.uniform(0, SECONDS_APART))
        statuses = {log: wait(process) for log, process in processes.items()}
        winner, loser = sorted(statuses, key=lambda log: statuses[log])
        if statuses[winner] or statuses[loser] != 2:
            return f"ended with {sorted(statuses.values())}: {last_words(loser)}"
        return refusal(2, loser) or command.differs(name, whole[0])

    return pair
