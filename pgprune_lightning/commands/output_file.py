"""Where commands write a file."""

from __future__ import annotations

import os
from pathlib import Path

from pgprune_lightning.errors import UserError


def check_writable(option: str, path: Path) -> None:
    """Refuse a file that could not be written.

    Args:
        option: What names it, without its dashes.
        path: The file.

    Raises:
        UserError: If it is a folder, or its folder cannot be written or made.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--{option}: {path} cannot be written; give a file in a folder of yours.")
