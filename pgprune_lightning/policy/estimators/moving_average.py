"""REINFORCE with a moving-average baseline, the paper's estimator.

Shapes: S samples of this rank, R samples of all ranks.
"""

from typing import Literal

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.estimator import (
    GradientEstimator,
    Normalization,
    ScoreScale,
)
from pgprune_lightning.policy.estimators.samples import MaskSamples


class MovingAverageBaseline(GradientEstimator):
    """The mean of (loss - baseline) times score, with the baseline averaged over past losses.

    Args:
        window: Length T of the moving average, in steps; 1 is the mean of the last step alone.
        start: What the baseline is before the first step: the first step's mean loss, or 0.
        order: Whether a step uses the baseline before or after its own losses have entered it.
        score_scale: What m - s is divided by: its `variance` s (1 - s), or its
            `standard_deviation`; see `GradientEstimator`.
        normalization: What the sum over N_s samples is divided by: N_s (`samples`) or N_s - 1
            (`samples_minus_one`); see `GradientEstimator`.

    Raises:
        UserError: The window is shorter than one step.

    Source: eqs. 7 and 8.
    Differs: Algorithm 1 starts the baseline at 0 and updates it before its use (`zero`,
        `update_then_use`). From 0 the first advantages are whole losses, and the first steps are
        huge. Updating first makes the baseline depend on the step's own masks, which shrinks the
        expected gradient by the factor 1 - 1 / (T R). With `first_loss` the first step alone has
        the factor 1 - 1 / R, since its baseline is the mean of its own losses.
    """

    num_updates: Tensor

    def __init__(
        self,
        window: int = 5,
        start: Literal["first_loss", "zero"] = "first_loss",
        order: Literal["use_then_update", "update_then_use"] = "use_then_update",
        score_scale: ScoreScale = "variance",
        normalization: Normalization = "samples",
    ) -> None:
        super().__init__(score_scale, normalization)
        if window < 1:
            raise UserError(f"The baseline's window is {window} steps. Give 1 or more; 5 is usual.")
        self.window = window
        self.start = start
        self.order = order
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient and update the baseline. See `GradientEstimator.estimate`."""
        losses_S = samples.losses_S.detach().double()
        mean_loss = samples.losses_R.mean()
        starts = self.start == "first_loss" and self.num_updates == 0
        baseline = mean_loss if starts else self.baseline.clone()
        updated = baseline + (mean_loss - baseline) / self.window
        self.baseline.copy_(updated)
        self.num_updates += 1

        used = baseline if self.order == "use_then_update" else updated
        self.used_baseline.copy_(used)
        return self._reinforce(losses_S - used, samples)
