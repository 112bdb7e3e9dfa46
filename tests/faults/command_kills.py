"""Commands killed with SIGKILL at what they do to files, and started again."""

from __future__ import annotations

import random
import signal

from tests.faults.commands import Command, Commands, Left
from tests.faults.file_events import Death, count_file_events, deaths, die_at_file_event
from tests.faults.tally import Tally

KILLED = -signal.SIGKILL


def kill_commands(commands: Commands, number: int, seed: int = 0) -> Tally:
    """Kill each command so many times, at events spread over all that it does to files.

    Every third run is killed again while it is made again, and every one that replaces a result.
    """
    draw, tally = random.Random(seed), Tally()
    for command in commands.each:
        counted = command.folder / f"{command.name}-file-events"
        whole = command.whole(count_file_events(command.place("whole"), counted))
        for death in deaths(counted, number, draw):
            name = f"event-{death.event}-torn-{death.torn:g}"
            again = draw if tally.tried % 3 == 2 or command.old else None
            tally.add(f"{command.name} {name}", _killed(command, name, whole, death, again))
    return tally


def _killed(
    command: Command, run: str, whole: Left, death: Death, again: random.Random | None
) -> str:
    place = command.place(run)
    status = command.run(run, prepare=die_at_file_event(place, death))
    if status != KILLED:
        return f"ended with status {status} before it could be killed"
    if broken := command.half_written(run, whole):
        return broken
    if again is not None:
        second = Death(again.randrange(1, death.event + 1), again.choice((0.0, 0.5, 1.0)))
        status = command.run(run, *command.again, prepare=die_at_file_event(place, second))
        if status not in (KILLED, 0):
            return f"again: status {status}"
        if broken := command.half_written(run, whole):
            return f"killed again: {broken}"
    return command.completed(run, whole)
