"""A run's folder: who may write into it, and what was deleted from it during the run."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pgprune_lightning.atomic_write import remove_temp_files
from pgprune_lightning.errors import UserError

ExistingRun = Literal["stop", "move_aside"]

START_FILE = "start.ckpt"
"""The measurement of a start that is not finished."""
RUN_FILES = ("config.yaml", "metrics.csv", "plans", "checkpoints", "summary.json", START_FILE)
NEVER_DELETED = (
    *("config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt"),
    *(f"plans/{name}/plan.json" for name in ("initial", "best", "last")),
)
"""What a run replaces in its folder, and never removes."""


def check_run_folder(run_dir: Path, existing_run: ExistingRun, *, resumes: bool) -> None:
    """Refuse a folder that holds a run, before anything is built; see `claim_run_folder`.

    Raises:
        UserError: If it holds a run and `existing_run` is `stop`.
    """
    if existing_run == "stop" and not resumes and _holds_run(run_dir):
        raise UserError(
            f"run_dir: {run_dir} already holds a run. Go on with it by --resume auto, choose "
            "another --run_dir, or pass --existing_run move_aside."
        )


def claim_run_folder(run_dir: Path, existing_run: ExistingRun, *, resumes: bool) -> None:
    """Make the folder of a new run, without touching an older one.

    Args:
        run_dir: The folder.
        existing_run: What to do if it already holds a run: `stop`, or `move_aside` to
            `RUN_DIR-1`, `-2`, ...
        resumes: Whether the run goes on from a checkpoint, in which case the folder is shared.

    Raises:
        UserError: If it holds a run and `existing_run` is `stop`, or if it cannot be written.
    """
    check_run_folder(run_dir, existing_run, resumes=resumes)
    try:
        if not resumes and _holds_run(run_dir):
            run_dir.rename(free_name(run_dir))
        run_dir.mkdir(parents=True, exist_ok=True)
        for folder in (run_dir, run_dir / "checkpoints", *(run_dir / "plans").glob("*")):
            remove_temp_files(folder)
    except OSError as error:
        raise UserError(
            f"run_dir: {run_dir} cannot be made: {error.strerror}. Choose another --run_dir."
        ) from error


def how_to_go_on(run_dir: Path) -> str:
    """What to do with a run that a signal has ended between its steps."""
    if any((run_dir / "checkpoints").glob("*.ckpt")):
        return "Go on with --resume auto."
    if (run_dir / START_FILE).exists():
        return "What was measured of the start is kept. Go on with --resume auto."
    return "There was nothing to keep yet. Start the same command again."


def remove_if_empty(run_dir: Path) -> None:
    """Remove a folder that was made for a run and has got nothing of it."""
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()


def _holds_run(run_dir: Path) -> bool:
    return any((run_dir / name).exists() for name in RUN_FILES)


def free_name(folder: Path) -> Path:
    """The first of FOLDER-1, -2, ... that does not exist, to move a folder aside to."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return aside


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
