"""From an exported model to a tuned one of the same format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pgprune_lightning.atomic_directory import atomic_directory, files_in
from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import UserError
from pgprune_lightning.evaluation import provenance
from pgprune_lightning.export.curve import perplexity_of
from pgprune_lightning.finetuning.adapter_checkpoints import AdapterCheckpoints
from pgprune_lightning.finetuning.adapter_training import AdapterTraining, Example
from pgprune_lightning.finetuning.exported_folder import (
    RESULT_FILE,
    check_reloaded,
    exported_source,
    load_exported,
    update_export,
    write_like,
)
from pgprune_lightning.finetuning.lora import attach_adapter, target_modules_of
from pgprune_lightning.finetuning.merging import keep_pruned, merge, zero_columns
from pgprune_lightning.finetuning.options import LoraOptions
from pgprune_lightning.finetuning.resumable_training import Progress, restored, train_resumably
from pgprune_lightning.finetuning.work_folder import (
    CHECKPOINTS,
    claim_work_folder,
    remove_work_folder,
    work_folder,
)
from pgprune_lightning.masking.fingerprint import weights_fingerprint
from pgprune_lightning.training.metrics_file import METRICS_FILE, MetricsFile
from pgprune_lightning.training.run_folder import FolderWatch


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
        What `finetune.json` holds.

    Raises:
        UserError: If there is nothing that could be gone on with where it should, the loss is not
            finite, the disk is full, the tuned model does not reload as it was, or files of the
            work folder were deleted, in which case the tuned model is there nevertheless.
        SystemExit: If it was asked to stop.
    """
    model = load_exported(job.exported, job.dtype, job.device)
    weights = {"weights": weights_fingerprint(exported_source(job.exported), model)}
    work = work_folder(job.output)
    checkpoints = AdapterCheckpoints(work / CHECKPOINTS, job.identity | weights)
    state = checkpoints.newest() if job.resumes else None
    if job.resumes and state is None and (work / METRICS_FILE).exists():
        raise UserError(
            f"resume: {work} holds a fine-tuning, but its checkpoints are gone. Bring one back, or "
            "start anew with --resume never --existing replace."
        )
    claim_work_folder(job.output, resumes=state is not None)
    before = _perplexity(model, job.text, "before") if state is None else None
    zeroed = zero_columns(model, target_modules_of(model, job.lora))
    torch.manual_seed(job.lora.seed)
    adapted = attach_adapter(model, job.lora)
    keep_pruned(adapted, zeroed)
    training = AdapterTraining(adapted, job.examples, job.lora)
    metrics = MetricsFile(work)
    progress = restored(state, training, metrics) or Progress(before)
    _announce(training, adapted, resumed=state is not None)
    watch = FolderWatch(work, (METRICS_FILE, CHECKPOINTS))
    train_resumably(training, checkpoints, metrics, progress, watch, every=job.every)
    with atomic_directory(job.output) as folder:
        result = _finish(job, adapted, progress, folder)
    watch.look()
    try:
        watch.check()
    finally:
        remove_work_folder(job.output)
    return result


def _announce(training: AdapterTraining, adapted: Any, *, resumed: bool) -> None:
    trained, _ = adapted.get_nb_trainable_parameters()
    place = f", going on after step {training.step}" if resumed else ""
    print(f"adapters   {trained:,} parameters; {training.num_steps:,} steps{place}", flush=True)


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
