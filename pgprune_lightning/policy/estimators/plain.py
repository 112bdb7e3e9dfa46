"""REINFORCE without a baseline."""

from torch import Tensor

from pgprune_lightning.policy.estimators.estimator import GradientEstimator
from pgprune_lightning.policy.estimators.samples import MaskSamples


class PlainReinforce(GradientEstimator):
    """The mean of loss times score: unbiased, with a large variance.

    Its options are those of every estimator; see `GradientEstimator`.

    Source: eqs. 5 and 6, averaged over the samples; the ablation of table A8.
    """

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient; nothing is remembered. See `GradientEstimator.estimate`."""
        return self._reinforce(samples.losses_S, samples)
