"""Where a fine-tuning keeps what it goes on from, and what it may write over.

Until it is finished everything lies in `OUTPUT.unfinished`, so that `OUTPUT` is a whole model or is
not there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from pgprune_lightning.atomic_write import remove_temp_files
from pgprune_lightning.errors import UserError
from pgprune_lightning.finetuning.exported_folder import RESULT_FILE
from pgprune_lightning.record_file import read_object
from pgprune_lightning.training.metrics_file import METRICS_FILE

ExistingOutput = Literal["stop", "replace"]
Resume = Literal["never", "auto"]

CHECKPOINTS = "checkpoints"


def work_folder(output: Path) -> Path:
    """The folder of a fine-tuning that is not finished."""
    return output.with_name(f"{output.name}.unfinished")


def check_output(output: Path, exported: Path, existing: ExistingOutput, resume: Resume) -> None:
    """Refuse a folder that holds something, before anything is loaded.

    Args:
        output: Where the tuned model is to lie.
        exported: The model that is tuned.
        existing: Whether what an earlier fine-tuning left there may be replaced.
        resume: Whether an unfinished one is gone on with.

    Raises:
        UserError: If it does.
    """
    if output.resolve() == exported.resolve():
        raise UserError(f"--output: {output} is the model itself; give another folder.")
    is_finished = (output / RESULT_FILE).is_file()
    if _holds_something(output) and not (is_finished and resume == "auto"):
        if existing == "stop":
            raise UserError(
                f"--output: {output} already exists. Choose another, or pass --existing replace."
            )
        if not is_finished:
            raise UserError(
                f"--existing replace: {output} was not written by finetune (it has no "
                f"{RESULT_FILE}); remove it yourself, or choose another --output."
            )
    if resume == "never" and existing == "stop" and work_folder(output).exists():
        raise UserError(
            f"--output: {work_folder(output)} holds a fine-tuning that is not finished. Go on with "
            "it by --resume auto, choose another --output, or start anew with --existing replace."
        )


def finished_result(output: Path) -> dict[str, Any] | None:
    """What a finished fine-tuning says of itself; None if there is none.

    Raises:
        UserError: If it cannot be read.
    """
    path = output / RESULT_FILE
    return read_object(path, "--output") if path.exists() else None


def claim_work_folder(output: Path, *, resumes: bool) -> Path:
    """Make the work folder, without what an earlier fine-tuning left unless it is gone on with.

    Raises:
        UserError: If it cannot be made.
    """
    work = work_folder(output)
    try:
        if not resumes:
            remove_work_folder(output)
        work.mkdir(parents=True, exist_ok=True)
        remove_temp_files(work)
        remove_temp_files(work / CHECKPOINTS)
    except OSError as error:
        raise UserError(
            f"--output: {work} cannot be made: {error.strerror}. Choose another --output."
        ) from error
    return work


def remove_work_folder(output: Path) -> None:
    """Remove what this program keeps in a work folder, and the folder if that was all."""
    work = work_folder(output)
    shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
    (work / METRICS_FILE).unlink(missing_ok=True)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()


def _holds_something(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
