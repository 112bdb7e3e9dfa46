"""Commands on a disk that fills up, and started again when there is room."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.commands import Command, Commands, Left, difference, left_in
from tests.faults.processes import complaint, last_words
from tests.faults.tally import Tally

DISK = 32 * 2**20
"""Bytes of the file system."""
SHARE = 1.5
"""Of what a result takes, so much is free at most: what is on its way takes room, too."""


def fill_disks(commands: Commands, number: int) -> Tally:
    """Run each command so many times with too little room, each time with a little more.

    Where no file system of its own can be mounted, which root alone may, nothing is tried.
    """
    tally = Tally()
    for command in commands.each:
        with mounted_disk(command.folder / f"{command.name} disk") as disk:
            if disk is None:
                print("full disks: not tried, since root alone may mount a small one", flush=True)
                return tally
            on_disk = replace(command, folder=disk)
            before = shutil.disk_usage(disk).used
            whole = on_disk.whole()
            taken = shutil.disk_usage(disk).used - before
            shutil.rmtree(on_disk.place("whole"))
            for tried in range(number):
                free = int(SHARE * taken * tried / number)
                loss = _filled(on_disk, f"free-{free}", free, whole)
                tally.add(f"{command.name} with {free / 1024:.0f} kB free", loss)
    return tally


@contextmanager
def mounted_disk(folder: Path, size: int = DISK) -> Iterator[Path | None]:
    """A file system of its own for the length of a `with` block; None where there can be none."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _filled(command: Command, run: str, free: int, whole: Left) -> str:
    place, log = command.place(run), command.log(run)
    before = left_in(place)
    log.touch()
    filler = command.folder / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(command.folder).free - free)))
    status = command.run(run)
    filler.unlink()
    if status == 0:
        return command.differs(run, whole)
    if status != 2:
        return f"ended with status {status}: {last_words(log)}"
    return (
        complaint(log)
        or command.half_written(run, whole)
        or _left_behind(command, run, before)
        or command.completed(run, whole)
    )


def _left_behind(command: Command, run: str, before: Left) -> str:
    """What an export has left, which says that it leaves nothing."""
    if not command.name.startswith("export"):
        return ""
    changed = difference(left_in(command.place(run)), before)
    return changed and f"left behind: {changed}"
