"""A control variate: a linear prediction of the loss from what a mask keeps of each layer.

Shapes: S samples of this rank, R samples of all ranks, U units, F features.
"""

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators.control_variate import ControlVariate, check_forgetting
from pgprune_lightning.policy.estimators.estimator import GradientEstimator
from pgprune_lightning.policy.estimators.kept_units import (
    kept_unit_features,
    unit_loadings,
    unit_slopes,
)
from pgprune_lightning.policy.estimators.samples import MaskSamples
from pgprune_lightning.policy.mask_space import MaskSpace

_LEVEL_WINDOW = 5


class LinearSurrogate(ControlVariate):
    """Subtracts a prediction of each loss from its mask, and adds the prediction's exact gradient.

    The prediction is linear in two features for each layer and kind: the kept units, and the kept
    units weighted by the initial metric. It is a ridge regression on past steps, whose masks say
    much about few features and little about each of many units. How well it fits changes the
    variance alone: the expectation stays what the wrapped estimator's is, since the fit never sees
    the step's own masks.

    Args:
        estimator: The estimator of the rest, by class_path.
        forgetting: Factor on the weight of past samples in the regression, a step, in (0, 1].
        ridge: Penalty on the squared coefficients, in samples for each feature, above 0: 1 expects
            the features to explain about half of the variance over masks.

    Raises:
        UserError: A number is out of range, or the wrapped estimator is not one of the gradient
            itself.

    Source: REINFORCE with a control variate of known expectation, as Grathwohl et al. 2018
        (RELAX), with a linear surrogate fitted by least squares; not in the paper.
    """

    loadings_U2: Tensor
    gram_FF: Tensor
    moment_F: Tensor
    level: Tensor
    num_updates: Tensor

    def __init__(
        self, estimator: GradientEstimator, forgetting: float = 0.99, ridge: float = 1.0
    ) -> None:
        super().__init__(estimator)
        check_forgetting(forgetting)
        if not ridge > 0:
            raise UserError(f"ridge: must be above 0, given {ridge}; 1 is usual.")
        if estimator.score_scale != "variance" or estimator.normalization != "samples":
            raise UserError(
                "LinearSurrogate adds an exact gradient to the estimate of the rest, which has "
                "another scale with the estimator's options given: leave its score_scale at "
                "variance and its normalization at samples."
            )
        self.forgetting = forgetting
        self.ridge = ridge
        self.space: MaskSpace | None = None

    def prepare(self, space: MaskSpace, initial_probabilities_U: Tensor) -> None:
        """Make the features of the units. See `GradientEstimator.prepare`."""
        super().prepare(space, initial_probabilities_U)
        self.space = space
        loadings_U2 = unit_loadings(space, initial_probabilities_U.detach())
        num_features = 2 * len(space.groups)
        zero = loadings_U2.new_zeros(())
        # Single precision halves the checkpoint; only their use must be the same everywhere.
        self.register_buffer("loadings_U2", loadings_U2.float())
        self.register_buffer("gram_FF", zero.new_zeros(num_features, num_features))
        self.register_buffer("moment_F", zero.new_zeros(num_features))
        self.register_buffer("level", zero.clone())
        self.register_buffer("num_updates", torch.zeros_like(zero, dtype=torch.int64))

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient and update the fit. See `GradientEstimator.estimate`."""
        assert self.space is not None, "prepare() was not called"
        s_U, loadings_U2 = samples.keep_probabilities_U.detach(), self.loadings_U2.double()
        features_SF = kept_unit_features(
            self.space, loadings_U2, samples.masks_SU.to(s_U.dtype) - s_U
        )
        coefficients_F = self._coefficients()
        gradient_U = self._estimate_rest(samples, features_SF @ coefficients_F)
        slopes_U = unit_slopes(self.space, loadings_U2, coefficients_F)
        # As in the score: a unit at a bound cannot be drawn otherwise.
        gradient_U = gradient_U + torch.where((s_U > 0) & (s_U < 1), slopes_U, 0.0)
        self._learn(samples.of_all_ranks(features_SF), samples.losses_R, coefficients_F)
        return gradient_U

    def _coefficients(self) -> Tensor:
        """Solve the ridge regression on past steps, (F,) float64."""
        num_features = len(self.moment_F)
        penalty_F = torch.full_like(self.moment_F, self.ridge * num_features)
        factor_FF = torch.linalg.cholesky(self.gram_FF + penalty_F.diag())
        return torch.cholesky_solve(self.moment_F[:, None], factor_FF)[:, 0]

    def _learn(self, features_RF: Tensor, losses_R: Tensor, coefficients_F: Tensor) -> None:
        # The features have no mean, so the level of the losses is no part of the fit: it follows
        # the policy, faster than the coefficients need to.
        level = (losses_R - features_RF @ coefficients_F).mean()
        if self.num_updates == 0:
            self.level.copy_(level)
        self.gram_FF.mul_(self.forgetting).add_(features_RF.T @ features_RF)
        self.moment_F.mul_(self.forgetting).add_(features_RF.T @ (losses_R - self.level))
        self.level += (level - self.level) / _LEVEL_WINDOW
        self.num_updates += 1
