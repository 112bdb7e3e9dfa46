"""Training that saves itself, stops when it is asked to, and goes on as if it had not."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from pgprune_lightning.finetuning.adapter_checkpoints import AdapterCheckpoints
from pgprune_lightning.finetuning.adapter_training import AdapterTraining
from pgprune_lightning.stop_signals import ExplainedExit, noted_stop_signals
from pgprune_lightning.training.metrics_file import MetricsFile
from pgprune_lightning.training.run_folder import FolderWatch


@dataclass
class Progress:
    """What a fine-tuning has found so far, for its report; it is in the checkpoints.

    Args:
        perplexity_before: Of the model before the first step; None where there is no text.
        steps: Steps taken.
        first_loss: Of the first step, in nats per token of the answers.
        last_loss: Of the last step taken.
        seconds: That steps have taken.
    """

    perplexity_before: float | None = None
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float = 0.0


def restored(
    state: dict[str, Any] | None, training: AdapterTraining, metrics: MetricsFile
) -> Progress | None:
    """Bring training and metrics to where a checkpoint was taken.

    Args:
        state: What `AdapterCheckpoints.newest` returned.
        training: A training of the same model, examples and options.
        metrics: The metrics of the work folder.

    Returns:
        What had been found; None if there is no checkpoint.
    """
    if state is None:
        return None
    training.load_state_dict(state)
    metrics.go_on_with(state["metrics_row"])
    return Progress(**state["progress"])


def train_resumably(
    training: AdapterTraining,
    checkpoints: AdapterCheckpoints,
    metrics: MetricsFile,
    progress: Progress,
    watch: FolderWatch,
    *,
    every: int,
) -> None:
    """Take the steps that are left.

    Args:
        training: The training.
        checkpoints: Where it is saved: before the first step, every few steps, after the last one,
            and after the step in which a stop signal comes.
        metrics: Where loss and step size go.
        progress: What was found so far; brought up to date.
        watch: Of the folder that checkpoints and metrics lie in.
        every: Steps between checkpoints.

    Raises:
        SystemExit: If it was asked to stop; with the status of its signal.
        UserError: If the loss is not finite.
    """

    def save() -> None:
        state = {"progress": asdict(progress), "metrics_row": metrics.open_row}
        checkpoints.save(training.state_dict() | state)

    start = time.monotonic() - progress.seconds
    if training.step == 0:
        save()
    with noted_stop_signals() as stop, closing(training.steps("fine-tuning")) as steps:
        lr = training.lr
        for loss in steps:
            watch.look()
            metrics.log_metrics({"loss": loss, "lr": lr}, training.step)
            lr = training.lr
            progress.seconds = time.monotonic() - start
            progress.steps, progress.last_loss = training.step, loss
            if progress.first_loss is None:
                progress.first_loss = loss
            is_last = training.step == training.num_steps
            if stop.status or is_last or training.step % every == 0:
                save()
            if stop.status:
                break
    metrics.finalize("stopped" if stop.status else "success")
    if stop.status:
        sys.stderr.write(
            f"\nStopped after step {training.step} of {training.num_steps}. Go on with --resume "
            "auto.\n"
        )
        raise ExplainedExit(stop.status)
