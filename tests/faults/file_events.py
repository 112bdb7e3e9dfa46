"""What a process does to the files of a folder, counted, and its end at one of these events."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    **{"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1},
    **{"os.chmod": 1, "os.link": 2, "os.symlink": 2, "fcntl.flock": 1, "fcntl.lockf": 1},
}
"""Python's audit events besides `open`, with the number of paths that they begin with.

What other languages write, such as safetensors its weights, is not seen; Python's steps before and
after it are.
"""


@dataclass(frozen=True)
class Death:
    """When a process is to be killed.

    Args:
        event: The number of the file event before which it dies, from 1 on.
        torn: How much of the write before this event is undone, from 0 (nothing) to 1, as if the
            process had died within it.
    """

    event: int
    torn: float = 0.0


def deaths(counted: Path, number: int, draw: random.Random) -> Iterator[Death]:
    """Spread so many deaths over all file events.

    The first one is before the last renaming of all, where a result is put in its place, and every
    second one before the last renaming in its share of the events. In half of them the last write
    is torn.

    Args:
        counted: What `count_file_events` has written.
        number: How many.
        draw: Where in its share of the events each falls.
    """
    events = counted.read_text().split()
    for index in range(number):
        first, end = (part * len(events) // number for part in (index, index + 1))
        share = range(first, end) if index else range(len(events))
        renamings = [place for place in share if events[place] == "os.rename"]
        is_renaming = index == 0 or index % 2 == 1
        place = draw.choice((is_renaming and renamings[-1:]) or share or range(len(events)))
        yield Death(place + 1, torn=(0.0, 0.0, 0.5, 0.5, 1.0, 0.0)[index % 6])


def count_file_events(folder: Path, counted: Path) -> Callable[[], None]:
    """Prepare a process to write down its file events, by name.

    Args:
        folder: Where; all below it counts.
        counted: The file that takes the names.
    """

    def prepare() -> None:
        names = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _watch(folder, lambda _, event: os.write(names, f"{event.name}\n".encode()))

    return prepare


def die_at_file_event(folder: Path, death: Death) -> Callable[[], None]:
    """Prepare a process to end by SIGKILL at a file event; its log says at which.

    Args:
        folder: Where; all below it counts.
        death: When.
    """

    def prepare() -> None:
        last_write: list[tuple[Path, int]] = []

        def act(number: int, event: _Event) -> None:
            if number == death.event:
                for path, size in last_write:
                    _tear(path, size, death.torn)
                os.write(2, f"\n[killed before {event}]\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            if event.name == "open":
                keeps = not event.truncates and event.paths[0].is_file()
                size = event.paths[0].stat().st_size if keeps else 0
                last_write[:] = [(event.paths[0], size)]

        _watch(folder, act)

    return prepare


@dataclass(frozen=True)
class _Event:
    """A file event that has not happened yet."""

    name: str
    paths: tuple[Path, ...]
    truncates: bool = False

    def __str__(self) -> str:
        return f"{self.name} {' '.join(map(str, self.paths))}"


def _watch(folder: Path, act: Callable[[int, _Event], object]) -> None:
    """Call `act` with number and event before each; there is no way to end this."""
    inside, number, acting = os.path.realpath(folder), 0, False

    def see(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number, acting
        if acting or not (name == "open" or name == "fsync" or name in PATHS):
            return
        event = _event(name, arguments)
        if event is None or not any(path.is_relative_to(inside) for path in event.paths):
            return
        number, acting = number + 1, True
        try:
            act(number, event)
        finally:
            acting = False

    fsync = os.fsync

    def seen_fsync(handle: Any) -> None:
        see("fsync", (handle,))
        fsync(handle)

    os.fsync = seen_fsync  # the one call that Python does not audit
    sys.addaudithook(see)


def _event(name: str, arguments: tuple[Any, ...]) -> _Event | None:
    """None for what only reads."""
    if name == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & WRITES or isinstance(path, int):
            return None
        return _Event(name, (_absolute(path),), bool(flags & os.O_TRUNC))
    if name == "fsync" or name.startswith("fcntl"):
        handle = arguments[0]
        number = handle if isinstance(handle, int) else handle.fileno()
        return _Event(name, (_absolute(number),))
    count = PATHS[name]
    folders = [value for value in arguments[count:] if isinstance(value, int)][-count:]
    if name in ("os.truncate", "os.symlink"):
        folders = []  # a length, or one folder for two paths
    folders += [-1] * (count - len(folders))
    paths = zip(arguments[:count], folders, strict=True)
    return _Event(name, tuple(_absolute(path, folder) for path, folder in paths))


def _absolute(path: Any, folder: int = -1) -> Path:
    """The place of a path or an open file, as far as links have been resolved."""
    if isinstance(path, int):
        return Path(f"/proc/self/fd/{path}").readlink()
    start = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()
    return Path(os.path.normpath(start / os.fsdecode(path)))


def _tear(path: Path, size: int, share: float) -> None:
    if path.is_file() and (written := path.stat().st_size - size) > 0:
        os.truncate(path, size + round(written * (1 - share)))
