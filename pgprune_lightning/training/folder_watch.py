"""Noticing that files of a run are deleted while it is under way."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from pgprune_lightning.errors import UserError


class FolderWatch:
    """Compares what lies in a folder from look to look.

    A run does not end where its files are deleted: it writes again what it holds in memory. In the
    end it says what was deleted, because the rest of that is lost.

    Args:
        folder: The folder that a run writes.
        names: Files and folders in it that the run replaces, and never deletes.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names
        self._present: set[str] = set()
        self._deleted: list[str] = []

    def look(self) -> None:
        """Note what has been deleted since the last look, and warn of it.

        To be called before anything is written: what is there again was not seen to be gone.
        """
        present = {name for name in self._names if self._is_there(name)}
        gone = [name for name in self._names if name in self._present - present]
        self._present = present
        new = [name for name in gone if name not in self._deleted]
        if new:
            self._deleted += new
            warnings.warn(
                f"{self._folder}: deleted during the run: {', '.join(new)}. The run goes on, and "
                "writes again what it still holds.",
                stacklevel=2,
            )

    def check(self) -> None:
        """Refuse to end a run as if nothing had been deleted.

        Raises:
            UserError: If something was.
        """
        if not self._deleted:
            return
        missing = [name for name in self._deleted if not self._is_there(name)]
        still = (
            f" Still missing: {', '.join(missing)}; --resume auto writes what the checkpoint holds."
            if missing
            else ""
        )
        raise UserError(
            f"{self._folder}: deleted during the run: {', '.join(self._deleted)}. The run went on "
            f"to its end and wrote again what it still held; the rest is lost.{still}"
        )

    def _is_there(self, name: str) -> bool:
        try:
            (self._folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return name in self._present  # a disk that does not answer has deleted nothing
        return True
