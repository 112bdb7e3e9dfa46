"""How checkpoints get to the disk: whole or not at all, and a full disk does not end the run."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.training.checkpoint_file import read_checkpoint


class CrashSafeCheckpointIO(CheckpointIO):
    """Writes beside the target and renames; reads tensors and primitives, and runs no pickled code.

    Lightning's own stages in the temporary folder and moves: from another file system a kill leaves
    a part of a file where the last good one was.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        """Why the last checkpoint could not be written; None if it was."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; where that fails, say so once and let the run go on.

        An error here would end one rank of many, and leave the others waiting for it.
        """
        del storage_options
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write_atomically(Path(path), content.getvalue())
        except UserError as error:
            if self.failure is None:
                warnings.warn(
                    f"no checkpoint: {error} The run goes on, and tries again at the next; the "
                    "last one that was written stays.",
                    stacklevel=2,
                )
            self.failure = str(error)
            return
        if self.failure is not None:
            warnings.warn(f"checkpoints are written again: {path}.", stacklevel=2)
        self.failure = None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU, whatever is asked: nothing in it is trusted.

        Raises:
            UserError: If it is missing or damaged.
        """
        del map_location, weights_only
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)
