"""The checkpoints of a fine-tuning: adapters, optimizer, schedule, place and random state."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pgprune_lightning.errors import UserError
from pgprune_lightning.training.checkpoints import CrashSafeCheckpointIO, read_archive

VERSION = 1
NEEDED = frozenset(
    ("identity", "step", "adapter", "optimizer", "schedule", "random", "progress", "metrics_row")
)
KEPT = 2
"""Files that stay: the one before the last is for a disk that damages the last."""


class AdapterCheckpoints:
    """Checkpoints in a folder, of one fine-tuning.

    Args:
        folder: Where they lie; made when the first is written.
        identity: What decides the numbers beside the checkpoint, as JSON gives it back.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = identity
        self._files = CrashSafeCheckpointIO()

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint and remove older ones; a full disk does not end the run.

        Args:
            state: Tensors and primitives; `step` is the number of steps taken.
        """
        path = self._folder / f"step={state['step']:08d}.ckpt"
        described = state | {"version": VERSION, "identity": self._identity}
        self._files.save_checkpoint(described, path)
        if self._files.failure is None:
            for old in self._newest_first()[KEPT:]:
                self._files.remove_checkpoint(old)

    def newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that loads.

        Returns:
            What was saved; None if there is no checkpoint.

        Raises:
            UserError: If there are some and none loads, or it is of another fine-tuning.
        """
        paths = self._newest_first()
        for path in paths:
            try:
                state = read_archive(path)
            except UserError as error:
                warnings.warn(f"passed over. {error}", stacklevel=2)
            else:
                self._check(state, path)
                return dict(state)
        if paths:
            raise UserError(
                f"resume: none of the checkpoints in {self._folder} loads, and starting anew would "
                "lose them. Bring one back, or start anew with --existing replace."
            )
        return None

    def are_of_another(self) -> bool:
        """Whether the folder holds a checkpoint that is not of this fine-tuning, or cannot tell."""
        for path in self._newest_first():
            try:
                there = read_archive(path)["identity"]
                same = all(there[name] == value for name, value in self._identity.items())
            except (UserError, KeyError, TypeError):
                same = False
            if not same:
                return True
        return False

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob("step=*.ckpt"), reverse=True)

    def _check(self, state: Any, path: Path) -> None:
        known = isinstance(state, dict) and state.get("version") == VERSION
        if not known or not state.keys() >= NEEDED:
            raise UserError(
                f"resume: {path} is no checkpoint of this version of finetune; start anew with "
                "--existing replace."
            )
        difference = first_difference(state["identity"], self._identity)
        if difference:
            raise UserError(
                f"resume: {path} is of another fine-tuning ({difference}). Give its options, "
                "another --output, or start anew with --existing replace."
            )


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name what differs between two descriptions; empty if they are the same.

    Args:
        old: The one that is there.
        new: The one that is asked for.
    """
    for name in dict.fromkeys((*new, *old)):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            return first_difference(before, now)
        return f"{name}: there {before}, here {now}"
    return ""
