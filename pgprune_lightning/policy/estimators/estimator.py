"""What every gradient estimator has in common.

Shapes: S samples of this rank, R samples of all ranks, U units.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.bernoulli import score

ScoreScale = Literal["variance", "standard_deviation"]
Normalization = Literal["samples", "samples_minus_one"]


class GradientEstimator(nn.Module, ABC):
    """Turns losses of sampled masks into a gradient of the expected loss.

    What it remembers between steps are buffers, so that a checkpoint holds them.

    Args:
        score_scale: What m - s is divided by: the `variance` s (1 - s), as the paper (eq. 5), or
            the `standard_deviation`, its root, as the authors' published code.
        normalization: What the sum over the mask samples is divided by: their number N_s
            (`samples`), or N_s - 1 (`samples_minus_one`), as the authors' published code.

    Source: remark 4 and eq. 7.
    Differs: By the root, the expectation is sqrt(s (1 - s)) times the gradient: a descent direction
        still, and bounded near 0 and 1, where the score blows up. By N_s - 1 it is larger by the
        factor N_s / (N_s - 1), which undoes the shrinking by a baseline that is the mean of the
        step's own losses.
    """

    baseline: Tensor
    """What the next losses are compared with, a float64 scalar in nats per token."""
    used_baseline: Tensor
    """What the last estimate's losses were compared with; to be logged, not part of the state."""

    def __init__(
        self,
        score_scale: ScoreScale = "variance",
        normalization: Normalization = "samples",
    ) -> None:
        super().__init__()
        self.score_scale = score_scale
        self.normalization = normalization
        zero = torch.zeros((), dtype=torch.float64)
        self.register_buffer("baseline", zero)
        self.register_buffer("used_baseline", zero.clone(), persistent=False)

    def check_mask_samples(self, num_mask_samples: int) -> None:
        """Refuse fewer masks a step than the normalization needs.

        Args:
            num_mask_samples: Masks that a rank draws in a step (N_s).

        Raises:
            UserError: N_s - 1 would be 0.
        """
        if self.normalization == "samples_minus_one" and num_mask_samples < 2:
            raise UserError(
                "num_mask_samples: must be at least 2 with the estimator's normalization "
                f"samples_minus_one, given {num_mask_samples}."
            )

    @abstractmethod
    def estimate(
        self,
        losses_S: Tensor,
        masks_SU: Tensor,
        keep_probabilities_U: Tensor,
        all_losses_R: Tensor | None = None,
    ) -> Tensor:
        """Estimate the gradient, and learn from the losses for the next step.

        Args:
            losses_S: Loss under each mask, (S,), finite, in nats per token.
            masks_SU: The masks, (S, U) bool, drawn from `keep_probabilities_U`.
            keep_probabilities_U: The probabilities, (U,) float64.
            all_losses_R: Losses of the samples of all ranks, (R,), for what the ranks share;
                None: `losses_S`, for a single rank.

        Returns:
            This rank's estimate of the gradient, (U,) float64; the mean over the ranks is theirs.
        """

    def _reinforce(
        self, advantages_S: Tensor, masks_SU: Tensor, keep_probabilities_U: Tensor
    ) -> Tensor:
        """Average advantage times score over the samples.

        Args:
            advantages_S: Loss less baseline under each mask, (S,), in nats per token.
            masks_SU: The masks, (S, U) bool.
            keep_probabilities_U: The probabilities that they were drawn from, (U,) float64.

        Returns:
            The gradient, (U,) float64.

        Source: the bracket of eq. 7.
        """
        num_samples = len(advantages_S)
        assert advantages_S.shape == masks_SU.shape[:1], (advantages_S.shape, masks_SU.shape)
        self.check_mask_samples(num_samples)
        score_SU = score(masks_SU, keep_probabilities_U)
        if self.score_scale == "standard_deviation":
            score_SU = score_SU * (keep_probabilities_U * (1 - keep_probabilities_U)).sqrt()
        divisor = num_samples - (self.normalization == "samples_minus_one")
        return advantages_S.double() @ score_SU / divisor
