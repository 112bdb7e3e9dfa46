"""Writing a file so that a reader finds the old content or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pgprune_lightning.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, flush to the disk, then rename over the target.

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
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from error
