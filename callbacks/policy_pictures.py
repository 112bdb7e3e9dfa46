"""Sends the pictures of the report to Weights & Biases while a run is under way."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger

from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.report import policy_pictures
from pgprune_lightning.training import PolicyGradientPruning


class PolicyPictures(Callback):
    """Logs heat maps of the keep-probabilities and sparsity by layer to Weights & Biases.

    They belong to the mask just validated: the first validation's, later ones at most every so
    many steps, and the last. A run without W&B draws nothing.

    Args:
        every_n_steps: Steps between pictures, at least; 0: none at all.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 0:
            raise UserError(
                f"policy_pictures.every_n_steps: must be 0 or more steps, given {every_n_steps}."
            )
        self.every_n_steps = every_n_steps
        self._drawn_at: int | None = None
        self._initial: PruningPlan | None = None

    def on_validation_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Draw the mask that was just validated, if it is time to."""
        if trainer.state.fn != "fit":
            return
        since = None if self._drawn_at is None else trainer.global_step - self._drawn_at
        if since is None or since >= self.every_n_steps:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: PolicyGradientPruning) -> None:  # type: ignore[override]
        """Draw the mask of the end."""
        if self._drawn_at != trainer.global_step:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: PolicyGradientPruning) -> None:
        loggers = list(_wandb_loggers(trainer))
        if not (loggers and self.every_n_steps and trainer.is_global_zero):
            return
        from wandb import Html

        plan = pl_module.current_plan()
        if self._drawn_at is None and trainer.global_step == 0:
            self._initial = plan
        self._drawn_at = trainer.global_step
        for logger in loggers:
            pictures: dict[str, Any] = {
                name: Html(page, inject=False, data_is_not_path=True)
                for name, page in policy_pictures(plan, self._initial).items()
            }
            logger.log_metrics(pictures, step=trainer.global_step)


def _wandb_loggers(trainer: Trainer) -> Iterator[WandbLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))
