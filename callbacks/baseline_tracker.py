"""Logs how the policy gradient fares: loss, baseline, advantage, gradient, units at the bounds.

Shapes: S samples, U units, N units of one kind.
"""

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from callbacks.logging import is_logging_step, log_metrics
from pgprune_lightning.training import PolicyGradientPruning

NEAR = 0.05
"""Of the range between the bounds."""


class BaselineTracker(Callback):
    """Logs the quantities of the gradient estimate every `trainer.log_every_n_steps` steps.

    `train/loss`, `train/baseline` and `train/advantage` (mean loss less baseline) are in nats per
    token and belong to the step's own masks; the baseline is the one that was subtracted.
    `train/loss_spread` is the standard deviation over the masks. `policy/share_at_bounds` is the
    share of units whose keep-probability lies on a bound, `policy/near_lower/KIND` and
    `policy/near_upper/KIND` the share of a kind's units in the lowest and the highest twentieth of
    the range between the bounds, `policy/expected_keep_ratio` the expected kept share of the
    budgeted cost.
    """

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: PolicyGradientPruning,  # type: ignore[override]
        outputs: Any,
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        """Log the step just taken."""
        del batch, batch_idx
        if not is_logging_step(trainer):
            return
        losses_S: Tensor = outputs["losses"]
        loss, baseline = float(losses_S.mean()), float(outputs["baseline"])
        probabilities_U = pl_module.policy.keep_probabilities.detach()
        lower, upper = pl_module.budget.probability_bounds
        at_bounds_U = (probabilities_U <= lower) | (probabilities_U >= upper)
        log_metrics(
            trainer,
            {
                "train/loss": loss,
                "train/loss_spread": float(losses_S.std(correction=0)),
                "train/baseline": baseline,
                "train/advantage": loss - baseline,
                "train/gradient_norm": float(outputs["gradient_norm"]),
                "policy/share_at_bounds": float(at_bounds_U.double().mean()),
                "policy/expected_keep_ratio": pl_module.feasible_set.expected_keep_ratio(
                    probabilities_U
                ),
            }
            | _near_bounds(pl_module),
        )


def _near_bounds(pl_module: PolicyGradientPruning) -> dict[str, float]:
    """How many units of each kind are all but decided: most policies never reach a bound."""
    lower, upper = pl_module.budget.probability_bounds
    margin = NEAR * (upper - lower)
    probabilities_U = pl_module.policy.keep_probabilities.detach().cpu()
    shares = {}
    for kind in pl_module.space.kinds:
        s_N = probabilities_U[pl_module.space.units_of(kind)]
        shares[f"policy/near_lower/{kind}"] = float((s_N <= lower + margin).double().mean())
        shares[f"policy/near_upper/{kind}"] = float((s_N >= upper - margin).double().mean())
    return shares
