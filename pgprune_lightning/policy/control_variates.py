"""Control variates: subtract a prediction of each loss, and let another estimator see the rest.

Shapes: S mask samples of this rank, R those of all ranks, U units, G groups (the units of one kind
in one layer), N units of a group, F = 2 G features.
"""

# No `from __future__ import annotations`: the command line reads these types.
import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.estimators import GradientEstimator, MaskSamples
from pgprune_lightning.policy.unit_layout import UnitLayout

_LEVEL_WINDOW = 5
_LEAST_PROBABILITY = 1e-3  # probabilities are clipped here: at 0 and 1 their logits are infinite


class ControlVariate(GradientEstimator):
    """Lowers the variance of another estimator, which draws the masks.

    Args:
        estimator: The estimator that sees the remaining losses.
        forgetting: Factor on the weight of past samples in the regression, a step, in (0, 1].
    """

    def __init__(self, estimator: GradientEstimator, forgetting: float) -> None:
        super().__init__(estimator.score_scale, estimator.normalization)
        if not 0 < forgetting <= 1:
            raise UserError(f"forgetting: must lie in (0, 1], given {forgetting}; 0.99 is usual.")
        self.estimator = estimator
        self.forgetting = forgetting

    @property
    def needs_dense_losses(self) -> bool:
        """Whether the wrapped estimator needs the dense model's losses."""
        return self.estimator.needs_dense_losses

    def prepare(self, space: UnitLayout, initial_probabilities_U: Tensor) -> None:
        """Prepare the wrapped estimator. See `GradientEstimator.prepare`."""
        self.estimator.prepare(space, initial_probabilities_U)

    def check_mask_samples(self, num_mask_samples: int, num_texts: int = 1) -> None:
        """Check for the wrapped estimator. See `GradientEstimator.check_mask_samples`."""
        self.estimator.check_mask_samples(num_mask_samples, num_texts)

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw as the wrapped estimator does. See `GradientEstimator.draw`."""
        return self.estimator.draw(keep_probabilities_U, num_masks, generator)

    def _estimate_rest(self, samples: MaskSamples, predicted_S: Tensor) -> Tensor:
        """The wrapped estimator's gradient of the losses minus a prediction, (U,) float64."""
        losses_S = samples.losses_S.detach().double()
        gradient_U = self.estimator.estimate(samples.with_losses(losses_S - predicted_S))
        self.used_baseline.copy_(self.estimator.used_baseline + predicted_S.mean())
        self.baseline.copy_(samples.losses_R.mean())
        return gradient_U


class DenseLossControlVariate(ControlVariate):
    """Subtracts from each loss the part that the dense model's loss on the same text predicts.

    The prediction is c (dense loss - its mean), where c is the slope of a regression of losses on
    dense losses over past steps. It costs one dense forward pass a step. The dense loss does not
    depend on the mask, and c and the mean do not depend on the step's own masks, so the expectation
    stays. Estimators that compare masks of the same text (`LeaveOneOut`, `Antithetic`) gain
    nothing.

    Args:
        estimator: The estimator of the rest, by class_path.
        forgetting: Factor on the weight of past samples in the regression, a step, in (0, 1].
        shrinkage: Shrinks c while few samples are seen: to half at this number of samples.

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
        super().__init__(estimator, forgetting)
        if not shrinkage >= 0:
            raise UserError(f"shrinkage: must be at least 0 samples, given {shrinkage}.")
        self.shrinkage = shrinkage
        self.register_buffer("moments", torch.zeros(5, dtype=torch.float64))

    @property
    def needs_dense_losses(self) -> bool:
        """Always true."""
        return True

    @property
    def coefficient(self) -> Tensor:
        """The slope c of the next step, a float64 scalar; 0 before the first samples."""
        count, dense, loss, dense_dense, dense_loss = self.moments
        scatter = dense_dense - dense.square() / count
        slope = (dense_loss - dense * loss / count) / scatter
        # If all samples read one text, the scatter is rounding error.
        known = scatter > 1e-12 * dense_dense
        return torch.where(known, slope * count / (count + self.shrinkage), 0.0)

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient and update the fit. See `GradientEstimator.estimate`."""
        assert samples.dense_losses_S is not None, "the dense losses were not measured"
        dense_S = samples.dense_losses_S.double()
        mean = self.moments[1] / self.moments[0].clamp(min=1e-300)
        gradient_U = self._estimate_rest(samples, self.coefficient * (dense_S - mean))
        dense_R, losses_R = samples.of_all_ranks(dense_S), samples.losses_R
        terms = (torch.ones_like(dense_R), dense_R, losses_R, dense_R.square(), dense_R * losses_R)
        self.moments.mul_(self.forgetting).add_(torch.stack(terms).sum(dim=1))
        return gradient_U


class LinearSurrogate(ControlVariate):
    """Subtracts a prediction of each loss from its mask, and adds the prediction's exact gradient.

    The prediction is linear in two features of each layer and kind: the kept units, and the kept
    units weighted by the initial metric. It is a ridge regression on past steps, whose masks say
    much about few features and little about each of many units. The fit never sees the step's own
    masks, so it changes only the variance: the expectation is that of the wrapped estimator.

    Args:
        estimator: The estimator of the rest, by class_path.
        forgetting: Factor on the weight of past samples in the regression, a step, in (0, 1].
        ridge: Penalty on the squared coefficients, in samples for each feature, above 0. The value
            1 expects the features to explain about half of the variance over masks.

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
        super().__init__(estimator, forgetting)
        if not ridge > 0:
            raise UserError(f"ridge: must be above 0, given {ridge}; 1 is usual.")
        if estimator.score_scale != "variance" or estimator.normalization != "samples":
            raise UserError(
                "LinearSurrogate adds an exact gradient to the estimate of the rest, which has "
                "another scale with the estimator's options given: leave its score_scale at "
                "variance and its normalization at samples."
            )
        self.ridge = ridge
        self.space: UnitLayout | None = None

    def prepare(self, space: UnitLayout, initial_probabilities_U: Tensor) -> None:
        """Make the features of the units. See `GradientEstimator.prepare`."""
        super().prepare(space, initial_probabilities_U)
        self.space = space
        loadings_U2 = unit_loadings(space, initial_probabilities_U.detach())
        num_features = 2 * len(space.groups)
        zero = loadings_U2.new_zeros(())
        # Single precision halves the checkpoint.
        self.register_buffer("loadings_U2", loadings_U2.float())
        self.register_buffer("gram_FF", zero.new_zeros(num_features, num_features))
        self.register_buffer("moment_F", zero.new_zeros(num_features))
        self.register_buffer("level", zero.clone())
        self.register_buffer("num_updates", torch.zeros_like(zero, dtype=torch.int64))

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient and update the fit. See `GradientEstimator.estimate`."""
        assert self.space is not None, "prepare() was not called"
        s_U, loadings_U2 = samples.keep_probabilities_U.detach(), self.loadings_U2.double()
        deviations_SU = samples.masks_SU.to(s_U.dtype) - s_U
        features_SF = kept_unit_features(self.space, loadings_U2, deviations_SU)
        coefficients_F = self._coefficients()
        gradient_U = self._estimate_rest(samples, features_SF @ coefficients_F)
        slopes_U = unit_slopes(self.space, loadings_U2, coefficients_F)
        # As in the score, a unit at a bound has only one possible value.
        gradient_U = gradient_U + torch.where((s_U > 0) & (s_U < 1), slopes_U, 0.0)
        self._update(samples.of_all_ranks(features_SF), samples.losses_R, coefficients_F)
        return gradient_U

    def _coefficients(self) -> Tensor:
        """Solve the ridge regression on past steps, (F,) float64."""
        num_features = len(self.moment_F)
        penalty_F = torch.full_like(self.moment_F, self.ridge * num_features)
        factor_FF = torch.linalg.cholesky(self.gram_FF + penalty_F.diag())
        return torch.cholesky_solve(self.moment_F[:, None], factor_FF)[:, 0]

    def _update(self, features_RF: Tensor, losses_R: Tensor, coefficients_F: Tensor) -> None:
        # The features have mean zero, so the level of the losses is not part of the fit. It follows
        # the policy, faster than the coefficients need to.
        level = (losses_R - features_RF @ coefficients_F).mean()
        if self.num_updates == 0:
            self.level.copy_(level)
        self.gram_FF.mul_(self.forgetting).add_(features_RF.T @ features_RF)
        self.moment_F.mul_(self.forgetting).add_(features_RF.T @ (losses_R - self.level))
        self.level += (level - self.level) / _LEVEL_WINDOW
        self.num_updates += 1


def unit_loadings(space: UnitLayout, initial_probabilities_U: Tensor) -> Tensor:
    """Compute how much each unit adds to the two features of its group when it is kept.

    The features of a group are the number of kept units, and the kept units weighted by the logit
    of their initial probability, which is their metric. Under the initial policy both have variance
    1 and they are uncorrelated, so one ridge penalty suits all features.

    Args:
        space: The units.
        initial_probabilities_U: Keep-probabilities, (U,) float64, from 0 to 1.

    Returns:
        Loadings, (U, 2) float64; the second is 0 where all logits of a group are equal.
    """
    parts = initial_probabilities_U.double().split([group.count for group in space.groups])
    return torch.cat([_group_loadings(s_N) for s_N in parts])


def _group_loadings(s_N: Tensor) -> Tensor:
    s_N = s_N.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    variance_N, logit_N = s_N * (1 - s_N), s_N.logit()
    variance = variance_N.sum()
    centred_N = logit_N - (variance_N @ logit_N) / variance
    spread = variance_N @ centred_N.square()
    # Equal logits differ by rounding only.
    varies = spread > 1e-12 * (variance_N @ logit_N.square())
    weight_N = torch.where(varies, centred_N / spread.sqrt(), 0.0)
    return torch.stack([(1 / variance.sqrt()).expand_as(weight_N), weight_N], dim=1)


def kept_unit_features(space: UnitLayout, loadings_U2: Tensor, deviations_SU: Tensor) -> Tensor:
    """The features, (S, F), of masks: `deviations_SU` are the masks minus their probabilities."""
    # One product a group: a single scattered sum has no fixed order on some devices.
    features = [
        deviations_SU[:, group.start : group.end] @ loadings_U2[group.start : group.end]
        for group in space.groups
    ]
    return torch.cat(features, dim=1)


def unit_slopes(space: UnitLayout, loadings_U2: Tensor, coefficients_F: Tensor) -> Tensor:
    """Derivative, (U,), of `kept_unit_features @ coefficients_F` with respect to the mask."""
    # With the counts in a tensor, the host would wait for the device.
    by_unit_U2 = torch.cat(
        [
            slopes_2.expand(group.count, 2)
            for slopes_2, group in zip(coefficients_F.view(-1, 2), space.groups, strict=True)
        ]
    )
    return (by_unit_U2 * loadings_U2).sum(dim=1)
