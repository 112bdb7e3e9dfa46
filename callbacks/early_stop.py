"""Ends a run that no longer improves."""

import math
from typing import Any

from lightning.pytorch import Callback, Trainer

from callbacks.perplexity_validation import VALIDATION_METRIC
from pgprune_lightning.errors import UserError
from pgprune_lightning.training import PolicyGradientPruning


class EarlyStop(Callback):
    """Ends a fit once validation perplexity has stopped falling; its plan is still the best one.

    Lightning's own `EarlyStopping` cannot: the metric is known on the first rank alone, its least
    improvement is absolute, and it would count the masks of a falling keep ratio, which keep more
    than they may in the end. The steps that are taken are those of the run without it.

    Args:
        patience: Validations in a row without an improvement after which the run ends; 1 or more.
        min_improvement: Least fall below the best perplexity so far that counts, as a share of it,
            in [0, 1).

    Raises:
        UserError: A number is out of its range.
    """

    def __init__(self, patience: int = 5, min_improvement: float = 0.005) -> None:
        if patience < 1:
            raise UserError(f"EarlyStop: patience must be 1 validation or more, given {patience}.")
        if not 0 <= min_improvement < 1:
            raise UserError(f"EarlyStop: min_improvement is in [0, 1), given {min_improvement}.")
        self.patience = patience
        self.min_improvement = min_improvement
        self.best_perplexity = math.inf
        self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"best_perplexity": self.best_perplexity, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best_perplexity = state_dict["best_perplexity"]
        self.waited = state_dict["waited"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """A resumed run that had ended takes no further step."""
        del pl_module
        if trainer.strategy.reduce_boolean_decision(self.waited >= self.patience, all=False):
            trainer.should_stop = True

    def on_validation_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
    ) -> None:
        """Count, and let all ranks stop if the first one has waited long enough."""
        if trainer.state.fn != "fit":
            return
        budgets = pl_module.budgets
        at_target = budgets.measured_at(trainer.global_step) is budgets.stages[-1]
        if at_target and VALIDATION_METRIC in trainer.callback_metrics:
            self._count(float(trainer.callback_metrics[VALIDATION_METRIC]))
        if trainer.sanity_checking:
            self.waited = 0  # the untrained mask, which a later one has to beat
        if trainer.strategy.reduce_boolean_decision(self.waited >= self.patience, all=False):
            trainer.should_stop = True

    def _count(self, perplexity: float) -> None:
        # "not <", so that what is not a number is no improvement.
        if not perplexity < self.best_perplexity * (1 - self.min_improvement):
            self.waited += 1
            return
        self.best_perplexity, self.waited = perplexity, 0
