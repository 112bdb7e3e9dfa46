"""The measurement of a run's start, kept in its folder until there is a checkpoint."""

from __future__ import annotations

import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pgprune_lightning import __version__
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.measurement import Measurement, MeasurementState
from pgprune_lightning.training.checkpoints import read_archive
from pgprune_lightning.training.run_folder import START_FILE


class MeasuredStart:
    """Where the measurement of one start is kept as it grows.

    All ranks measure the same, from the same state; the first of them reads and writes.

    Args:
        run_dir: The run's folder.
        trainer: Knows the ranks.
        budget: What masks are cut by, as primitives.
    """

    def __init__(self, run_dir: Path, trainer: Trainer, budget: dict[str, Any]) -> None:
        self._path = run_dir / START_FILE
        self._trainer = trainer
        self._budget = budget
        self._began = time.monotonic()
        self.earlier_seconds = 0.0
        """What earlier processes have spent on what is in the file."""

    def measurement(self, identity: dict[str, Any]) -> Measurement:
        """The measurement, as far as an earlier process has come with it.

        Args:
            identity: All else that decides its numbers, as primitives; another begins anew.
        """
        identity = identity | {"budget": self._budget, "version": __version__}
        text = json.dumps(identity, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        is_first = self._trainer.is_global_zero
        found = self._read(digest) if is_first else {}
        found = self._trainer.strategy.broadcast(found)
        self.earlier_seconds = found.get("seconds", 0.0)

        def save(phases: MeasurementState) -> None:
            seconds = self.earlier_seconds + time.monotonic() - self._began
            content = io.BytesIO()
            torch.save({"digest": digest, "seconds": seconds, "phases": phases}, content)
            write_atomically(self._path, content.getvalue())

        return Measurement(found.get("phases"), save if is_first else None)

    def _read(self, digest: str) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            found = read_archive(self._path)
        except UserError:
            rank_zero_warn(f"{self._path} is damaged: the start is measured anew.")
            return {}
        if not isinstance(found, dict) or found.get("digest") != digest:
            rank_zero_warn(
                f"{self._path} is the measurement of another start, by other options or of another "
                "model or text: the start is measured anew."
            )
            return {}
        return found
