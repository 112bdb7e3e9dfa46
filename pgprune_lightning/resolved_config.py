"""The options of a run as they were resolved: in its folder, and in loggers that show them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


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
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the configuration to loggers that show it."""
        del pl_module, stage
        for logger in trainer.loggers:
            logger.log_hyperparams(plain(self.config.as_dict()))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Too early."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; `validate` and `test` leave that of their run as it was."""
        super().setup(trainer, pl_module, "fit")
