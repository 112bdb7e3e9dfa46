"""A lock on what a command writes: of two processes with one output the second is refused.

The lock is a POSIX record lock (`fcntl.lockf`) on a file beside the output. The kernel releases it
however its process ends, NFS carries it between machines, and forked data-loader workers do not
inherit it, as they would one by `flock`. It ends too when its process closes any descriptor of the
file, so nothing else may open a lock file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pgprune_lightning.errors import UserError

LOCK_SUFFIX = ".pgprune.lock"

SECONDS_TO_WAIT = 120.0
"""How long a run that goes on waits for the process before it, which may still be saving.

Slurm leaves a process 30 s between SIGTERM and SIGKILL; an NFS server keeps the locks of a machine
that has crashed for 90 s.
"""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_HELD_ELSEWHERE = {errno.EACCES, errno.EAGAIN}
_held: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked."""

os.register_at_fork(after_in_child=_held.clear)  # they are the parent's


@contextmanager
def exclusive_output(path: Path, option: str, *, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Let no other process write an output while the `with` block runs.

    Args:
        path: The file or folder that is written; it need not exist.
        option: What names it, for messages.
        wait_seconds: How long to wait for another process that holds it.

    Yields:
        Whether it is locked; where the file system has no locks there is a warning instead.

    Raises:
        UserError: If another process writes it, or its folder cannot be written. Nothing has been
            changed then.
    """
    file = _lock_file(path)
    made = [folder for folder in file.parents if not folder.exists()]
    try:
        handle = _acquire(file, path, option, wait_seconds)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                _release(file, handle)
    finally:
        with suppress(OSError):  # a refused run leaves no empty folders
            for folder in made:
                folder.rmdir()


def _lock_file(path: Path) -> Path:
    """Beside the output, which may be moved aside or replaced while it is locked.

    A mount point is neither, and its own file system is what other machines share.
    """
    place = path.resolve()
    if place.is_mount() or (place.is_dir() and not os.access(place.parent, os.W_OK)):
        return place / LOCK_SUFFIX
    return place.with_name(f".{place.name}{LOCK_SUFFIX}")


def _acquire(file: Path, path: Path, option: str, wait_seconds: float) -> int | None:
    """The descriptor of the locked file; None where there are no locks."""
    end, is_waiting = time.monotonic() + wait_seconds, False
    while True:
        try:
            handle = _try_to_lock(file)
        except _Held as held:
            in_use = f"{option}: {path} is in use by {held.holder}"
            if time.monotonic() >= end:
                raise UserError(
                    f"{in_use}. Wait until it has ended, or choose another {option}. If it is gone "
                    f"and its machine has crashed, delete {file}."
                ) from None
            if not is_waiting:
                print(
                    f"{in_use}; waiting for it to end, {wait_seconds:.0f} s at most",
                    file=sys.stderr,
                    flush=True,
                )
            is_waiting = True
            time.sleep(0.5)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                warnings.warn(
                    f"{option}: the file system of {path} has no locks ({error.strerror}), so see "
                    "to it that no other process writes there.",
                    stacklevel=2,
                )
                return None
            raise UserError(
                f"{option}: {path} cannot be written ({error.strerror}: {error.filename or file})."
                " Give one in a folder of yours."
            ) from error
        else:
            if handle is not None:
                return handle


class _Held(Exception):  # noqa: N818 - it is waited for
    """Another process has the lock."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def _try_to_lock(file: Path) -> int | None:
    """Open and lock the file; None if its last holder has removed it meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if _identity(file.stat()) in _held:  # opened and closed, our own lock would be lost
            raise _Held("this process")
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # its folder went with the last holder
        return None
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 1000, 0).decode(errors="replace").strip()
        os.close(handle)
        if error.errno in _HELD_ELSEWHERE:
            raise _Held(holder or "another process") from error
        file.unlink(missing_ok=True)
        raise
    if not _is_still_there(file, handle):
        os.close(handle)
        return None
    with suppress(OSError):  # on a full disk the lock has no name
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held.add(_identity(os.fstat(handle)))
    return handle


def _is_still_there(file: Path, handle: int) -> bool:
    try:
        return _identity(file.stat()) == _identity(os.fstat(handle))
    except FileNotFoundError:
        return False


def _release(file: Path, handle: int) -> None:
    """Remove the file while it is still locked: who has opened it meanwhile will open it anew."""
    identity = _identity(os.fstat(handle))
    if identity in _held:  # not in a forked child
        _held.remove(identity)
        with suppress(OSError):
            if _is_still_there(file, handle):
                file.unlink()
    os.close(handle)


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
