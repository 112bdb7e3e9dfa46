"""What every gradient estimator has in common.

Shapes: S samples of this rank, R samples of all ranks, U units.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from pgprune_lightning.policy.bernoulli import score


class GradientEstimator(nn.Module, ABC):
    """Turns losses of sampled masks into a gradient of the expected loss.

    What it remembers between steps are buffers, so that a checkpoint holds them.
    """

    minimum_mask_samples: ClassVar[int] = 1
    baseline: Tensor
    """What the next losses are compared with, a float64 scalar in nats per token."""
    used_baseline: Tensor
    """What the last estimate's losses were compared with; to be logged, not part of the state."""

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.register_buffer("baseline", zero)
        self.register_buffer("used_baseline", zero.clone(), persistent=False)

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


def reinforce(advantages_S: Tensor, masks_SU: Tensor, keep_probabilities_U: Tensor) -> Tensor:
    """Average advantage times score over the samples.

    Args:
        advantages_S: Loss less baseline under each mask, (S,), in nats per token.
        masks_SU: The masks, (S, U) bool.
        keep_probabilities_U: The probabilities that they were drawn from, (U,) float64.

    Returns:
        The gradient, (U,) float64.

    Source: the bracket of eq. 7.
    """
    assert advantages_S.shape == masks_SU.shape[:1], (advantages_S.shape, masks_SU.shape)
    return advantages_S.double() @ score(masks_SU, keep_probabilities_U) / len(advantages_S)
