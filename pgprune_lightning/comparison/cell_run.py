"""Running `fit`, or its start alone, for one cell: measured, and without the report at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer

import callbacks
from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.evaluation.pass_counter import PassCounter
from pgprune_lightning.evaluation.resources import ResourceMeter
from pgprune_lightning.masking.frozen_model import resolve_dtype
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.run import Run, execute_run, remove_callbacks
from pgprune_lightning.training import PolicyGradientPruning
from pgprune_lightning.training.checkpoints import CHECKPOINTS, took_steps

ANY_START = (
    "--model.initialization.metric=random",
    "--model.initialization.plan=null",
    "--model.initialization.scores=null",
)
"""Where the mask is not looked at: the start that takes nothing and suits every kind of unit."""


class MakingOfMask(Callback):
    """Measures what a mask takes: from the loaded model and the tokenised texts to the last step.

    A fit that goes on from a checkpoint counts what was before it, too.
    """

    def __init__(self) -> None:
        self.meter = ResourceMeter()
        self.counter = PassCounter()

    def state_dict(self) -> dict[str, Any]:
        """What has been taken so far."""
        seconds, peak = self.meter.lap()
        return {
            "seconds": seconds,
            "peak_memory_bytes": peak,
            "memory_before_bytes": self.meter.memory_before_bytes,
            "passes": self.counter.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.meter.seconds += state_dict["seconds"]
        self.meter.peak_memory_bytes = state_dict["peak_memory_bytes"]
        self.meter.memory_before_bytes = state_dict.get("memory_before_bytes")
        self.counter.load_state_dict(state_dict["passes"])

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Begin; the model is there, and the texts are tokenised."""
        del pl_module, stage
        self.meter.start(trainer.strategy.root_device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """What follows is training."""
        del trainer, pl_module, batch, batch_idx
        self.counter.purpose = "training"

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """What follows is validation."""
        del trainer, pl_module
        self.counter.purpose = "validation"

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End, before other callbacks measure the outcome."""
        del trainer, pl_module
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the model, which other cells will use, as it was."""
        del trainer, pl_module, exception
        self.stop()

    def stop(self) -> None:
        """End, if that has not been done."""
        self.meter.stop()
        self.counter.detach()


class MeasuredRun(NamedTuple):
    """A run that has made a mask, and what that took.

    Args:
        module: Its module, with the model loaded.
        data: Its data module.
        trainer: Its Trainer.
        making: What the mask took.
    """

    module: PolicyGradientPruning
    data: TokenBlocksDataModule
    trainer: Trainer
    making: MakingOfMask

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.trainer.strategy.root_device


def measure_making(run: Run, *observers: Callback) -> MeasuredRun:
    """Put the measurement first among a run's callbacks, and load its model before that begins.

    The report is left out, whose numbers are not looked at.

    Args:
        run: The run, which has not begun.
        observers: Callbacks that take the place of all others.
    """
    making, trainer = MakingOfMask(), run.trainer
    remove_callbacks(trainer, Callback if observers else callbacks.OutcomeReport)
    trainer.callbacks[:0] = [making, *observers]  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    module = run.module
    model = open_frozen_model(  # the run will find it
        module.source,
        dtype=resolve_dtype(module.execution.dtype, device),
        device=device,
        attention=module.execution.attention,
    )
    making.counter.attach(model)
    # Its time and passes are a cell's result: the start is measured anew at each try.
    module.start_folder = None
    return MeasuredRun(*run, making)


def run_start(arguments: list[str], run_dir: Path, seed: int) -> MeasuredRun:
    """Set everything up as `fit` would, take the first mask and no step.

    Args:
        arguments: The cell's configuration.
        run_dir: Where nothing is written.
        seed: Seed of the order of the text, and of a random start.
    """
    own = [f"--run_dir={run_dir}", f"--seed_everything={seed}", "--trainer.limit_val_batches=0"]
    measured: list[MeasuredRun] = []
    execute_run(
        [*arguments, *own], "validate", prepare=lambda run: measured.append(measure_making(run))
    )
    return measured[0]


def run_fit(
    arguments: list[str], run_dir: Path, seed: int, module_class: type[PolicyGradientPruning]
) -> MeasuredRun:
    """Run a whole `fit`, from its last checkpoint on where an earlier try has left one.

    A try that took no step is started again in its own folder; one whose checkpoints are gone is
    moved aside.

    Args:
        arguments: The cell's configuration.
        run_dir: Folder of the run.
        seed: Seed of the run.
        module_class: What learns.
    """
    own = [f"--run_dir={run_dir}", f"--seed_everything={seed}", "--existing_run=move_aside"]
    if any((run_dir / CHECKPOINTS).glob("*.ckpt")) or not took_steps(run_dir):
        own.append("--resume=auto")
    measured: list[MeasuredRun] = []
    execute_run(
        [*arguments, *own], "fit", module_class, lambda run: measured.append(measure_making(run))
    )
    return measured[0]
