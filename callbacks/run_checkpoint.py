"""Keeps checkpoints from which a run goes on as if it had never been stopped."""

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from pgprune_lightning.atomic_write import write_atomically
from pgprune_lightning.errors import UserError
from pgprune_lightning.training.checkpoints import CHECKPOINTS, LAST
from pgprune_lightning.training.metrics_file import MetricsFile
from pgprune_lightning.training.run_folder import START_FILE


class RunCheckpoint(Checkpoint):
    """Saves `RUN_DIR/checkpoints/last.ckpt`, and a copy of each of the last ones by its step.

    A checkpoint is of the moment after a step and before the validation that may follow, which is
    then repeated. The first is saved before the first step, so that a run never measures its start
    twice, and the last one after the report, so that a run is resumed until it has one. At an error
    the run of one process saves too: a step that breaks off leaves all as it was.

    Args:
        run_dir: The run's folder.
        every_n_train_steps: Steps between two checkpoints, 1 or more; a killed run repeats at most
            so many.
        keep: Number of checkpoints to keep beside `last.ckpt`, 0 or more; if the newest is damaged,
            a run goes on from the one before.
    """

    def __init__(self, run_dir: str, every_n_train_steps: int = 100, keep: int = 3) -> None:
        if every_n_train_steps < 1:
            raise UserError(
                f"checkpoint.every_n_train_steps: 1 step or more, given {every_n_train_steps}."
            )
        if keep < 0:
            raise UserError(f"checkpoint.keep: 0 checkpoints or more, given {keep}.")
        self.folder = Path(run_dir) / CHECKPOINTS
        self.every_n_train_steps = every_n_train_steps
        self.keep = keep
        self._saved_step = -1
        self._validated_step = -1
        self._copies_fail = False

    def save(self, trainer: Trainer) -> None:
        """Save the run as it is, on all ranks together; what fails is said once and passed over."""
        # last.ckpt at the end: a run that is killed before it goes on from the older one and does
        # the rest again. After the last step there is nothing to do again.
        copy = self.folder / f"step={trainer.global_step:08d}.ckpt"
        written = copy if self.keep else self.folder / LAST
        trainer.save_checkpoint(written)
        self._saved_step = trainer.global_step
        failed = getattr(trainer.strategy.checkpoint_io, "failure", None) is not None
        if trainer.is_global_zero and not failed:
            try:
                self._keep_copies(written)
                self._copies_fail = False
            except (OSError, UserError) as error:
                if not self._copies_fail:
                    warnings.warn(f"{LAST} is not the newest: {error}", stacklevel=2)
                self._copies_fail = True

    def _keep_copies(self, written: Path) -> None:
        copies = sorted(self.folder.glob("step=*.ckpt"))
        # What a run left that was further on before it was resumed is no copy of this one.
        older = [copy for copy in copies if copy.stem <= f"step={self._saved_step:08d}"]
        for stale in older[: max(0, len(older) - self.keep)]:
            stale.unlink()
        if written.name != LAST:
            write_atomically(self.folder / LAST, written.read_bytes())

    # When it saves.

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Note which step has been validated."""
        del pl_module
        self._validated_step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Save the start, which takes the place of its measurement."""
        del pl_module
        if trainer.ckpt_path is None:
            self.save(trainer)
        if trainer.is_global_zero and (self.folder / LAST).exists():
            (self.folder.parent / START_FILE).unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Save every so many steps, but the last, which validation and report follow."""
        del pl_module, outputs, batch, batch_idx
        is_last = trainer.global_step == trainer.max_steps
        if trainer.global_step % self.every_n_train_steps == 0 and not is_last:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save the end."""
        del pl_module
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Save where a run of one process breaks off."""
        del pl_module
        is_error = isinstance(exception, Exception)
        is_new = 0 <= self._saved_step < trainer.global_step != trainer.max_steps
        # Of many ranks the others may be waiting elsewhere.
        if is_error and is_new and trainer.world_size == 1:
            self.save(trainer)

    # What it adds to what Lightning and the module save.

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Save what Lightning does not: the row of metrics in memory, and validation to come."""
        del pl_module
        rows = [log.open_row for log in trainer.loggers if isinstance(log, MetricsFile)]
        checkpoint["metrics_row"] = rows[0] if rows else {}
        checkpoint["validation_due"] = self._is_validation_due(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Give the row of metrics back."""
        del pl_module
        self._saved_step = checkpoint["global_step"]
        if not checkpoint.get("validation_due", False):
            self._validated_step = checkpoint["global_step"]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.go_on_with(checkpoint.get("metrics_row", {}))

    def _is_validation_due(self, trainer: Trainer) -> bool:
        every, step = trainer.val_check_batch, trainer.global_step
        if step in (0, self._validated_step) or not every or not trainer.enable_validation:
            return False
        return bool(step % every == 0)
