"""Writing a file so that a reader finds the old content or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import BinaryIO

from pgprune_lightning.errors import UserError

TEMPORARY = ".pgprune-tmp-"
"""What the name of every temporary file begins with; random hexadecimal digits follow."""
_RANDOM_BYTES = 8


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, flush to the disk, rename over the target, flush its folder.

    The file gets the permissions that the umask allows.

    Args:
        path: The target; its folder is made when missing.
        content: All of the new content.

    Raises:
        UserError: If the folder or the file cannot be written (full disk, no permission); what
            the target held before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside, file = _create_in(path.parent)
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:  # an interrupt leaves no temporary file either
            beside.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from error


def _create_in(folder: Path) -> tuple[Path, BinaryIO]:
    # Not tempfile.mkstemp, whose files are private whatever the umask is.
    path = folder / f"{TEMPORARY}{secrets.token_hex(_RANDOM_BYTES)}"
    return path, path.open("xb")


def _flush_folder(folder: Path) -> None:
    """Bring the new name to the disk, without which a power cut could undo the rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temp_files(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder.

    Args:
        folder: A folder that no other process writes to now.
    """
    for path in folder.glob(TEMPORARY + "[0-9a-f]" * (2 * _RANDOM_BYTES)):
        path.unlink(missing_ok=True)
