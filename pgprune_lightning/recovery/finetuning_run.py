"""From an exported model to a tuned one of the same format.

Until a fine-tuning is finished, everything lies in `OUTPUT.unfinished`: `OUTPUT` is a whole model
or is not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from pgprune_lightning.atomic_directory import atomic_directory, files_in
from pgprune_lightning.atomic_write import remove_temp_files, write_atomically
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.export.curve import perplexity_of
from pgprune_lightning.masking.fingerprint import weights_fingerprint
from pgprune_lightning.record_file import read_object
from pgprune_lightning.recovery.adapter_training import (
    AdapterTraining,
    Progress,
    StepLog,
    newest_checkpoint,
    train_adapter,
)
from pgprune_lightning.recovery.alpaca import Example
from pgprune_lightning.recovery.exported_folder import (
    RESULT_FILE,
    check_reloaded,
    exported_source,
    load_exported,
    update_export,
    write_like,
)
from pgprune_lightning.recovery.lora import (
    LoraOptions,
    attach_adapter,
    keep_pruned,
    merge,
    target_modules_of,
    zero_columns,
)
from pgprune_lightning.training.checkpoints import CHECKPOINTS
from pgprune_lightning.training.metrics_file import METRICS_FILE
from pgprune_lightning.training.run_folder import FolderWatch

ExistingOutput = Literal["stop", "replace"]
Resume = Literal["never", "auto"]


@dataclass(frozen=True)
class Job:
    """A checked request.

    Args:
        exported: The folder of the model.
        output: The folder of the tuned one, claimed (`claimed_directory`).
        lora: The adapter and its training.
        examples: What it is trained on.
        text: Blocks that perplexity is measured on; None: it is not.
        dtype: Type of the weights.
        device: Where the model runs.
        every: Steps between checkpoints.
        resumes: Whether an unfinished fine-tuning is gone on with.
        identity: What decides the numbers, as JSON gives it back.
        description: What the report says besides.
        command: What a user types to run it again.
    """

    exported: Path
    output: Path
    lora: LoraOptions
    examples: Sequence[Example]
    text: TokenBlocks | None
    dtype: torch.dtype
    device: torch.device
    every: int
    resumes: bool
    identity: dict[str, Any]
    description: dict[str, Any]
    command: str


def run_finetuning(job: Job) -> dict[str, Any]:
    """Train an adapter, merge it, and write, reload and check the tuned model.

    Returns:
        The content of `finetune.json`.

    Raises:
        UserError: If there is nothing to go on from where there should be, the loss is not finite,
            the disk is full, the tuned model does not reload as it was, or files of the work folder
            were deleted, in which case the tuned model is there nevertheless.
        SystemExit: If it was asked to stop.
    """
    model = load_exported(job.exported, job.dtype, job.device)
    weights = {"weights": weights_fingerprint(exported_source(job.exported), model)}
    identity, work = job.identity | weights, work_folder(job.output)
    found = newest_checkpoint(work / CHECKPOINTS, identity) if job.resumes else None
    if job.resumes and found is None and (work / METRICS_FILE).exists():
        raise UserError(
            f"resume: {work} holds a fine-tuning, but its checkpoints are gone. Bring one back, or "
            "start anew with --resume never --existing replace."
        )
    _claim_work_folder(job.output, resumes=found is not None)
    checkpoint, step = found or (None, 0)
    before = _perplexity(model, job.text, "before") if found is None else None
    log = StepLog("fine-tuning", perplexity_before=before)
    zeroed = zero_columns(model, target_modules_of(model, job.lora))
    torch.manual_seed(job.lora.seed)
    adapted = attach_adapter(model, job.lora)
    keep_pruned(adapted, zeroed)
    training = AdapterTraining(adapted, job.examples, job.lora, identity)
    trained, _ = adapted.get_nb_trainable_parameters()
    place = "" if found is None else f", going on after step {step}"
    print(f"adapters   {trained:,} parameters; {training.num_steps:,} steps{place}", flush=True)
    watch = FolderWatch(work, (METRICS_FILE, CHECKPOINTS))
    train_adapter(training, log, folder=work, every=job.every, watch=watch, checkpoint=checkpoint)
    with atomic_directory(job.output) as folder:
        result = _finish(job, adapted, log.progress, folder)
    watch.look()
    try:
        watch.check()
    finally:
        remove_work_folder(job.output)
    return result


def _finish(job: Job, adapted: Any, progress: Progress, folder: Path) -> dict[str, Any]:
    """Write the tuned model into an empty folder, and say of it what holds of the files."""
    merged = merge(adapted)
    write_like(merged.model, job.exported, folder)
    nn.Module.to(merged.model, "meta")  # a second model may not fit beside it
    tuned = load_exported(folder, job.dtype, job.device)
    difference = check_reloaded(tuned, merged.logits_BTV)
    update_export(job.exported, folder, difference)
    result = job.description | {
        "steps": progress.steps,
        "perplexity_before": progress.perplexity_before,
        "perplexity_after": _perplexity(tuned, job.text, "after"),
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "seconds": round(progress.seconds, 1),
        "merge_logit_difference": merged.rounding,
        "max_logit_difference": difference,
        "provenance": provenance(job.device) | {"command": job.command},
    }
    with suppress(FileNotFoundError):  # it was deleted, as is said in the end
        shutil.copyfile(work_folder(job.output) / METRICS_FILE, folder / METRICS_FILE)
    result["files"] = sorted([*files_in(folder), RESULT_FILE])
    write_atomically(folder / RESULT_FILE, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _perplexity(model: PreTrainedModel, blocks: TokenBlocks | None, when: str) -> float | None:
    return None if blocks is None else perplexity_of(model, blocks, f"perplexity {when}")


# The folders.


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


def _claim_work_folder(output: Path, *, resumes: bool) -> Path:
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
