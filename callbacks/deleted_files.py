"""Looks, before other callbacks write, whether files of the run have been deleted."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from pgprune_lightning.training.run_folder import FolderWatch


class DeletedFiles(Callback):
    """Looks into the run folder at every step, validation and end; it has to be the first callback.

    Args:
        watch: Of the run's folder.
    """

    def __init__(self, watch: FolderWatch) -> None:
        self.watch = watch

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """See what a run that is resumed has left."""
        self._look(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Look before metrics and checkpoints are written."""
        self._look(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Look before metrics and plans are written."""
        self._look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Look before the last plans and the report are written."""
        self._look(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Look after the report, before the last metrics are written."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self.watch.look()
