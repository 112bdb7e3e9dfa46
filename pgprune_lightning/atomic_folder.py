"""Writing a folder so that it is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pgprune_lightning.errors import UserError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Fill an empty folder that takes its place when the `with` block ends without an error.

    What lay in the place before is replaced then, and not earlier. After an error, or an interrupt,
    nothing of the new folder is left.

    Args:
        folder: The place; the folders above it are made when missing.

    Yields:
        A folder beside it.

    Raises:
        UserError: If the disk does not take what is written: it is full, or not writable.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}.pgprune-"
        for left_by_a_killed_writer in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(left_by_a_killed_writer, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        try:
            yield beside
            _publish(beside)
            _move(beside, folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        raise _not_written(folder, error.strerror or str(error)) from error
    except SafetensorError as error:
        raise _not_written(folder, str(error)) from error


def _not_written(folder: Path, reason: str) -> UserError:
    return UserError(
        f"cannot write {folder}: {reason}. Make room, or give a folder that is writable; nothing "
        "was left behind."
    )


def _publish(folder: Path) -> None:
    """Bring everything to the disk, with the permissions that the umask allows.

    A folder of `mkdtemp` and files of safetensors are private until then, whatever the umask is.
    """
    forbidden = os.umask(0o077)  # it can only be read by setting another
    os.umask(forbidden)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~forbidden)
        if path.is_file():
            with path.open("rb") as opened:
                os.fsync(opened.fileno())


def _move(beside: Path, folder: Path) -> None:
    if not folder.exists():
        beside.rename(folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.pgprune-"))
    folder.rename(old / "replaced")
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
