"""REINFORCE without a baseline.

Shapes: S samples of this rank, R samples of all ranks, U units.
"""

from torch import Tensor

from pgprune_lightning.policy.estimators.estimator import GradientEstimator


class PlainReinforce(GradientEstimator):
    """The mean of loss times score: unbiased, with a large variance.

    Its options are those of every estimator; see `GradientEstimator`.

    Source: eqs. 5 and 6, averaged over the samples; the ablation of table A8.
    """

    def estimate(
        self,
        losses_S: Tensor,
        masks_SU: Tensor,
        keep_probabilities_U: Tensor,
        all_losses_R: Tensor | None = None,
    ) -> Tensor:
        """Estimate the gradient; nothing is remembered. See `GradientEstimator.estimate`."""
        return self._reinforce(losses_S, masks_SU, keep_probabilities_U)
