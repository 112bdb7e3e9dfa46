"""Running `fit`, or its start alone, for one cell: measured, and without the report at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

import callbacks
from pgprune_lightning.comparison.repeated_cli import RaisingParser, RepeatedCLI
from pgprune_lightning.evaluation.pass_counter import PassCounter
from pgprune_lightning.evaluation.resources import ResourceMeter
from pgprune_lightning.masking.frozen_model import resolve_dtype
from pgprune_lightning.masking.model_reuse import open_frozen_model
from pgprune_lightning.pruning_cli import run_command
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


class CellCLI(RepeatedCLI):
    """The command line of one cell."""

    making: MakingOfMask

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Put the measurement first, and leave out the report, whose numbers are not looked at."""
        trainer = super().instantiate_trainer(**options)
        self.making = MakingOfMask()
        others: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        kept = [other for other in others if not isinstance(other, callbacks.OutcomeReport)]
        trainer.callbacks = [self.making, *kept]  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Load the model before anything is measured; the run will find it."""
        super().after_instantiate_classes()
        device = self.device
        model = open_frozen_model(
            self.model.source,
            dtype=resolve_dtype(self.model.model_dtype, device),
            device=device,
            attention=self.model.attention,
        )
        self.making.counter.attach(model)

    def before_fit(self) -> None:
        """Measure the start anew at each try, since its time and passes are a cell's result."""
        super().before_fit()
        self.model.start_folder = None

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.trainer.strategy.root_device
        return device


def run_start(arguments: list[str], run_dir: Path, seed: int) -> CellCLI:
    """Set everything up as `fit` would, take the first mask and no step.

    Args:
        arguments: The cell's configuration.
        run_dir: Where nothing is written.
        seed: Seed of the order of the text, and of a random start.
    """
    own = [f"--run_dir={run_dir}", f"--seed_everything={seed}", "--trainer.limit_val_batches=0"]
    cli = run_command(["validate", *arguments, *own], CellCLI, RaisingParser)
    assert isinstance(cli, CellCLI)
    return cli


def run_fit(
    arguments: list[str], run_dir: Path, seed: int, module_class: type[PolicyGradientPruning]
) -> CellCLI:
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
    cli = run_command(["fit", *arguments, *own], CellCLI, RaisingParser, module_class)
    assert isinstance(cli, CellCLI)
    return cli
