"""Writing a file so that a reader finds the old content or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pgprune_lightning.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, flush to the disk, rename over the target, flush its folder.

    Args:
        path: The target; its folder is made when missing.
        content: All of the new content.

    Raises:
        UserError: If the folder or the file cannot be written (full disk, no permission); what
            the target held before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        beside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes private files; others on a cluster may read results.
            beside.chmod(0o644)
            beside.replace(path)
        except BaseException:  # an interrupt leaves no litter either
            beside.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from error


def _flush_folder(folder: Path) -> None:
    """Bring the new name to the disk, without which a power cut could undo the rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_litter(folder: Path) -> None:
    """Remove what a killed writer left beside the files of a folder.

    Args:
        folder: A folder that no other process writes to now.
    """
    for beside in folder.glob(".*.*.????????"):
        beside.unlink(missing_ok=True)
