"""A control variate: how difficult the text is for the dense model.

Shapes: S samples of this rank, R samples of all ranks.
"""

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.control_variate import ControlVariate, check_forgetting
from pgprune_lightning.policy.estimators.estimator import GradientEstimator
from pgprune_lightning.policy.estimators.samples import MaskSamples


class DenseLossControlVariate(ControlVariate):
    """Subtracts from each loss what the dense model's loss on the same text foretells of it.

    That is c times (dense loss - its mean), with c the slope of a regression of losses on dense
    losses over past steps. It costs one dense forward pass a step. The dense loss does not depend
    on the mask, nor c and the mean on the step's own masks, so the expectation stays. Masks of the
    same text that are compared with one another (`LeaveOneOut`, `Antithetic`) gain nothing.

    Args:
        estimator: The estimator of the rest, by class_path.
        forgetting: Factor on the weight of past samples in the regression, a step, in (0, 1].
        shrinkage: Pulls c to 0 while few samples are seen: to half at that many samples.

    Raises:
        UserError: A number is out of range.

    Source: A regression estimator of control variates (Owen 2013, "Monte Carlo theory, methods and
        examples", 8.9), fitted on past samples; not in the paper.
    """

    moments: Tensor
    """Weighted sums over past samples of 1, dense, loss, dense², dense · loss; (5,) float64."""

    def __init__(
        self, estimator: GradientEstimator, forgetting: float = 0.98, shrinkage: float = 10.0
    ) -> None:
        super().__init__(estimator)
        check_forgetting(forgetting)
        if not shrinkage >= 0:
            raise UserError(f"shrinkage: must be at least 0 samples, given {shrinkage}.")
        self.forgetting = forgetting
        self.shrinkage = shrinkage
        self.register_buffer("moments", torch.zeros(5, dtype=torch.float64))

    @property
    def needs_dense_losses(self) -> bool:
        """Always."""
        return True

    @property
    def coefficient(self) -> Tensor:
        """The slope c that the next step uses, a float64 scalar; 0 where nothing is known."""
        count, dense, loss, dense_dense, dense_loss = self.moments
        scatter = dense_dense - dense.square() / count
        slope = (dense_loss - dense * loss / count) / scatter
        # One text for all samples has no slope, but a scatter by rounding.
        known = scatter > 1e-12 * dense_dense
        return torch.where(known, slope * count / (count + self.shrinkage), 0.0)

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient and update the fit. See `GradientEstimator.estimate`."""
        assert samples.dense_losses_S is not None, "the dense losses were not measured"
        dense_S = samples.dense_losses_S.double()
        mean = self.moments[1] / self.moments[0].clamp(min=1e-300)
        gradient_U = self._estimate_rest(samples, self.coefficient * (dense_S - mean))
        self._learn(samples.of_all_ranks(dense_S), samples.losses_R)
        return gradient_U

    def _learn(self, dense_R: Tensor, losses_R: Tensor) -> None:
        terms = (torch.ones_like(dense_R), dense_R, losses_R, dense_R.square(), dense_R * losses_R)
        self.moments.mul_(self.forgetting).add_(torch.stack(terms).sum(dim=1))
