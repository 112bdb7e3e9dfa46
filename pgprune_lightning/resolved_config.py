"""The options of a run as they were resolved: in its folder, and in loggers that show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from pgprune_lightning.atomic_write import write_atomically


def plain(value: Any) -> Any:
    """Primitives only, as loggers and YAML want them."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class SaveResolvedConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder of a fit, once the model is loaded.

    Not before: a run that fails on its input leaves a folder in which the next one can start.
    Lightning's own opens the file before it builds the text; a run killed in between could not be
    resumed from it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and hand the configuration to loggers that show it.

        `validate` and `test` leave the file of their run as it was.
        """
        del pl_module
        if trainer.is_global_zero:
            self._write()
            for logger in trainer.loggers:
                logger.log_hyperparams(plain(self.config.as_dict()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file again if it was deleted during the run."""
        del pl_module
        if trainer.is_global_zero and not self._path.exists():
            self._write()

    @property
    def _path(self) -> Path:
        return Path(self.config.run_dir) / self.config_filename

    def _write(self) -> None:
        text = self.parser.dump(self.config, skip_unset=False)
        write_atomically(self._path, text.encode())
