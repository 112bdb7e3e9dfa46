"""What estimators have in common that subtract something from the losses and hand on the rest.

Shapes: S samples of this rank, U units.
"""

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.estimator import GradientEstimator
from pgprune_lightning.policy.estimators.samples import MaskSamples
from pgprune_lightning.policy.mask_space import MaskSpace


class ControlVariate(GradientEstimator):
    """Lowers the variance of another estimator, which draws the masks and sees what is left.

    Args:
        estimator: The estimator that gets the remaining losses.
    """

    def __init__(self, estimator: GradientEstimator) -> None:
        super().__init__(estimator.score_scale, estimator.normalization)
        self.estimator = estimator

    @property
    def needs_dense_losses(self) -> bool:
        """Whether the wrapped estimator needs the dense model's losses."""
        return self.estimator.needs_dense_losses

    def prepare(self, space: MaskSpace, initial_probabilities_U: Tensor) -> None:
        """Prepare the wrapped estimator. See `GradientEstimator.prepare`."""
        self.estimator.prepare(space, initial_probabilities_U)

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Refuse what the wrapped estimator does. See `GradientEstimator.check_mask_samples`."""
        self.estimator.check_mask_samples(num_mask_samples, num_texts)

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw as the wrapped estimator does. See `GradientEstimator.draw`."""
        return self.estimator.draw(keep_probabilities_U, num_masks, generator)

    def _estimate_rest(self, samples: MaskSamples, subtracted_S: Tensor) -> Tensor:
        """The wrapped estimator's gradient of the losses less something, (U,) float64."""
        losses_S = samples.losses_S.detach().double()
        gradient_U = self.estimator.estimate(samples.with_losses(losses_S - subtracted_S))
        self.used_baseline.copy_(self.estimator.used_baseline + subtracted_S.mean())
        self.baseline.copy_(samples.losses_R.mean())
        return gradient_U


def check_forgetting(forgetting: float) -> None:
    """Refuse a factor on the weight of past steps that is out of range.

    Raises:
        UserError: It is not above 0 and at most 1.
    """
    if not 0 < forgetting <= 1:
        raise UserError(f"forgetting: must lie in (0, 1], given {forgetting}; 0.99 is usual.")
