"""Writing a directory so that it is there as a whole or not at all.

While OUTPUT is written, `.OUTPUT.pgprune-XXXXXXXX` beside it holds the new content, and, for a
moment, `.OUTPUT.pgprune-old` holds the content that is replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from pgprune_lightning.errors import UserError
from pgprune_lightning.folder_lock import exclusive_output


@contextmanager
def claimed_directory(folder: Path, option: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keep other processes from a directory, and clear up after one that was killed.

    What a killed process had half replaced is put back; what it had half written is removed.

    Args:
        folder: Where `atomic_directory` will write.
        option: What names it, for messages.
        wait_seconds: How long to wait for another process that writes it.

    Raises:
        UserError: If another process writes it, or it cannot be replaced as a whole.
    """
    place = folder.resolve()
    _check_replaceable(place, folder, option)
    with exclusive_output(folder, option, wait_seconds=wait_seconds) as is_locked:
        try:
            _put_back(place)
            if is_locked:  # otherwise it may be the work of another process
                _remove_temp_directories(place)
        except OSError as error:
            raise UserError(f"{option}: {folder} cannot be written: {error.strerror}.") from error
        yield


@contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Fill an empty directory that takes its place when the `with` block ends without an error.

    What was in the place before is replaced then, and not earlier. After an error, or an interrupt,
    nothing of the new directory is left.

    Args:
        folder: The place, claimed by `claimed_directory`; the folders above it are made when
            missing.

    Yields:
        A directory beside it.

    Raises:
        UserError: If the disk does not take what is written: it is full, or not writable.
    """
    try:
        place = folder.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.pgprune-"))
        try:
            yield beside
            _publish(beside)
            _replace(place, beside)
        except BaseException:
            _put_back(place)
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        raise _not_written(folder, error.strerror or str(error)) from error
    except SafetensorError as error:
        raise _not_written(folder, str(error)) from error


def files_in(folder: Path) -> list[str]:
    """What a writer put into a directory, for its record: names of files, relative to it."""
    inside = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in inside)


def foreign_files(folder: Path, records: Sequence[str]) -> list[str]:
    """Files of a directory that its writer has not put there.

    Args:
        folder: The directory.
        records: Names of files that are the writer's. Of JSON, each has a list `files` of others;
            those that are missing or damaged name none.
    """
    known = set(records)
    for name in records:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            known.update(json.loads((folder / name).read_bytes())["files"])
    return [name for name in files_in(folder) if name not in known]


def check_no_foreign_files(folder: Path, records: Sequence[str], command: str) -> None:
    """Refuse to replace a directory together with files that its writer has not put there.

    Args:
        folder: The directory; it need not exist.
        records: As for `foreign_files`.
        command: The command that wrote it.

    Raises:
        UserError: If there are any.
    """
    foreign = foreign_files(folder, records)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UserError(
            f"--existing replace: {folder} is replaced as a whole, and holds files that {command} "
            f"did not write: {', '.join(foreign[:3])}{more}. Move them elsewhere, or give another "
            "--output."
        )


def _not_written(folder: Path, reason: str) -> UserError:
    return UserError(
        f"cannot write {folder}: {reason}. Make room, or give a folder that is writable; nothing "
        "was left behind."
    )


def _check_replaceable(place: Path, folder: Path, option: str) -> None:
    if place.is_mount():
        raise UserError(
            f"{option}: {folder} is a mount point, which cannot be replaced as a whole; give a "
            "folder in it."
        )
    parent = next(above for above in place.parents if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{option}: {folder} cannot be written; give a folder of yours.")


def _old_beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.pgprune-old")


def _publish(folder: Path) -> None:
    """Bring everything to the disk, with the permissions that the umask allows.

    A folder of `mkdtemp` and files of safetensors are private until then, whatever the umask is.
    """
    forbidden = os.umask(0o077)  # it can only be read by setting another
    os.umask(forbidden)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~forbidden)
        _flush(path)


def _replace(folder: Path, beside: Path) -> None:
    """Put the new directory in place.

    No call swaps two directories on every file system: between two renames neither is in place, and
    `_put_back` mends what a kill leaves there.
    """
    if folder.exists():
        folder.rename(_old_beside(folder))
    beside.rename(folder)
    _flush(folder.parent)
    with suppress(OSError):  # the new one is in place; the next writer tries again
        _remove_old(folder)


def _put_back(folder: Path) -> None:
    """Undo a replacement that was broken off, or end it where the new directory is in place."""
    if folder.exists() and any(folder.iterdir()):
        _remove_old(folder)
    elif _old_beside(folder).exists():
        _old_beside(folder).rename(folder)
        _flush(folder.parent)


def _remove_old(folder: Path) -> None:
    old = _old_beside(folder)
    if old.exists():
        # Under a temporary name first: what is removed in part must not be put back.
        removed = folder.with_name(f".{folder.name}.pgprune-replaced")
        shutil.rmtree(removed, ignore_errors=True)
        old.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _remove_temp_directories(folder: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.pgprune-[a-z0-9_]{{8}}")  # as mkdtemp's
    for path in folder.parent.iterdir():
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
