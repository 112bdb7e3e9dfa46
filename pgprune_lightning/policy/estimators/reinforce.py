"""REINFORCE: without a baseline, with the paper's moving average, and with the step's other masks.

Shapes: S samples of this rank, R samples of all ranks, X texts of this rank.
"""

# No `from __future__ import annotations`: the command line reads these types.
from typing import Literal

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.estimator import (
    GradientEstimator,
    MaskSamples,
    Normalization,
    ScoreScale,
)


class PlainReinforce(GradientEstimator):
    """The mean of loss times score: unbiased, with a large variance.

    Its options are those of every estimator; see `GradientEstimator`.

    Source: eqs. 5 and 6, averaged over the samples; the ablation of table A8.
    """

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient; nothing is remembered. See `GradientEstimator.estimate`."""
        return self._reinforce(samples.losses_S, samples)


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


class LeaveOneOut(GradientEstimator):
    """Compares each mask with the mean of the other masks of its step.

    Masks of the same text are compared with one another, so how difficult it is cancels, which a
    baseline of past steps cannot do; where each text has one mask, those of all texts of all ranks
    are. With two masks half the difference of their losses is left: more variance than a moving
    average has where masks differ more than texts do. It pays from some four masks on, and once
    the mask samples are alike.

    Args:
        score_scale: What m - s is divided by: its `variance` s (1 - s), or its
            `standard_deviation`; see `GradientEstimator`.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; not in the paper.
    """

    def __init__(self, score_scale: ScoreScale = "variance") -> None:
        super().__init__(score_scale, "samples")

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse a step with one mask. See `GradientEstimator.check_mask_samples`."""
        if num_mask_samples * num_texts < 2:
            raise UserError(
                "num_mask_samples: LeaveOneOut compares the masks of a step with one another and "
                f"needs at least 2, given {num_mask_samples}."
            )

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient; nothing is remembered. See `GradientEstimator.estimate`."""
        losses_S, per_text = samples.losses_S.detach().double(), samples.masks_per_text
        if per_text > 1:
            num_compared = per_text
            means_X1 = samples.by_text(losses_S).mean(dim=1, keepdim=True)
            means_S = means_X1.expand(-1, per_text).flatten()
        else:
            losses_R = samples.losses_R
            num_compared = len(losses_R)
            self.check_mask_samples(num_compared)
            means_S = losses_R.mean()
        self.baseline.copy_(samples.losses_R.mean())
        self.used_baseline.copy_(losses_S.mean())
        # loss - mean of the others = (loss - mean of all) * N / (N - 1)
        advantages_S = (losses_S - means_S) * (num_compared / (num_compared - 1))
        return self._reinforce(advantages_S, samples)
