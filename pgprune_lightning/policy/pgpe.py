"""Parameter-exploring policy gradients: moves of logits are drawn, and a sample is a whole mask.

Shapes: U units, G groups (the units of one kind in one layer), F metrics, P moves, R = F + 2 kinds
of move (offset, slopes, the unit's own), S mask samples, N pairs of them.
"""

# No `from __future__ import annotations`: the command line reads these types.
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.budgeted_logits import (
    check_no_layer_bounds,
    probabilities_on_budget,
)
from pgprune_lightning.policy.estimators import GradientEstimator, MaskSamples, PairedEstimator
from pgprune_lightning.policy.feasible_set import FeasibleSet
from pgprune_lightning.policy.policies import MaskPolicy, group_of_units, units_of_kinds
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout

_PROBIT_SLOPE = math.sqrt(8 / math.pi)
"""A logistic curve of this slope is close to the distribution function of a Gaussian."""


class PGPE(PairedEstimator):
    """The gradient of the expected loss with respect to the means of Gaussian moves.

    The two samples of a pair move by e and by -e; the estimate is half the difference of their
    losses times e. It needs no baseline: the part of the loss that both masks share cancels. Only
    `PGPEPolicy` has such moves, and no other estimator works with that policy.

    Source: Sehnke et al. 2010, "Parameter-exploring policy gradients", symmetric sampling.
    Differs: The gradient is with respect to means in standard deviations, in nats per token.
    """

    drawn_by = "PGPEPolicy"
    needs_its_policy = True

    def __init__(self) -> None:
        super().__init__()
        self.num_moves = 0
        self._masks_of: Callable[[Tensor], Tensor] | None = None
        self._moves_NP: Tensor | None = None

    def explore(self, num_moves: int, masks_of: Callable[[Tensor], Tensor]) -> None:
        """Connect to the policy, before the first draw.

        Args:
            num_moves: Number of moves (P).
            masks_of: Makes the masks, (S, U) bool, of moves around the present means, (S, P)
                float64, in standard deviations.
        """
        self.num_moves = num_moves
        self._masks_of = masks_of

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw pairs of opposite moves, keep them, and make their masks.

        See `GradientEstimator.draw`.
        """
        assert num_masks % 2 == 0, num_masks
        assert self._masks_of is not None, "explore has not been called"
        moves_NP = torch.randn(
            (num_masks // 2, self.num_moves),
            generator=generator,
            dtype=torch.float64,
            device=keep_probabilities_U.device,
        )
        self._moves_NP = moves_NP
        return self._masks_of(torch.stack([moves_NP, -moves_NP], dim=1).flatten(0, 1))

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient of the means, (P,) float64. See `GradientEstimator.estimate`."""
        moves_NP, losses_S = self._moves_NP, samples.losses_S.detach().double()
        assert moves_NP is not None, "draw has not been called"
        assert len(losses_S) == 2 * len(moves_NP), (losses_S.shape, moves_NP.shape)
        self._moves_NP = None
        self._note_losses(samples)
        halves_N = (losses_S[0::2] - losses_S[1::2]) / 2
        return halves_N @ moves_NP / len(halves_N)


class PGPEPolicy(MaskPolicy):
    """Gaussian moves of few numbers for each layer and kind; a sample is a whole mask.

    The logit of a unit is its initial logit, plus an offset and slopes times the metrics, shared by
    its layer and kind, plus, in kinds of few units, a move of its own. All of these are drawn from
    Gaussians of fixed width around learned means; the mask of a sample keeps the top units of the
    budget. So the run could return every mask that it evaluates. Masks of units drawn one by one
    differ most by whether a unit that nothing can replace was dropped by chance.

    Its estimator is `PGPE`, and no other. `lr` is in widths of the Gaussian for each nat of half
    the difference of a pair's losses.

    Args:
        features: Metrics beside the initial one that get slopes of their own, such as
            [flap, wanda_sp], normalised as `initialization.normalization` says.
        own_kinds: Kinds of unit with a move for each unit; kv_group, where it is pruned, if None.
        offset_width: Standard deviation of an offset, in logits.
        slope_width: Standard deviation of a slope, in logits for each standard deviation of the
            metric in the layer and kind.
        own_width: Standard deviation of a unit's own move, in logits.

    Raises:
        UserError: A width is not positive and finite.

    Source: Sehnke et al. 2010, "Parameter-exploring policy gradients"; not in the paper.
    Differs: The widths are fixed. The probabilities that are shown and saved approximate how often
        a sample keeps each unit.
    """

    own_estimator = PGPE
    initial_logits_U: Tensor
    widths_RU: Tensor
    """How far one width of its moves moves a unit, in logits; 0 where it has no such move. In the
    state, since a resumed run has no text to measure metrics on."""
    moves_of_RU: Tensor
    """Index of each of those moves."""
    group_of_U: Tensor
    lr_factors_P: Tensor

    def __init__(
        self,
        features: list[str] = [],  # noqa: B006 (read only)
        own_kinds: list[UnitKind] | None = None,
        offset_width: float = 0.4,
        slope_width: float = 0.2,
        own_width: float = 0.6,
    ) -> None:
        super().__init__()
        widths = {
            "offset_width": offset_width,
            "slope_width": slope_width,
            "own_width": own_width,
        }
        for name, width in widths.items():
            if not 0 < width < math.inf:
                raise UserError(f"model.policy: {name} must be above 0 and finite, given {width}.")
        self.feature_names = ("initial", *features)
        self.own_kinds = own_kinds
        self.offset_width = offset_width
        self.slope_width = slope_width
        self.own_width = own_width
        self._feasible_set: FeasibleSet | None = None

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Number the moves. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        default = [kind for kind in space.kinds if kind == "kv_group"]
        own_kinds = default if self.own_kinds is None else self.own_kinds
        own_units = units_of_kinds(space, own_kinds, "own_kinds")
        group_of_U, num_groups = group_of_units(space), len(space.groups)
        num_shared = (len(self.feature_names) + 1) * num_groups
        shared_RU = torch.arange(0, num_shared, num_groups)[:, None] + group_of_U
        own_U = torch.zeros_like(group_of_U)
        own_U[own_units] = num_shared + torch.arange(len(own_units))
        moves_of_RU = torch.cat([shared_RU, own_U[None]])
        widths_RU = torch.zeros(moves_of_RU.shape, dtype=torch.float64)
        widths_RU[0] = self.offset_width
        widths_RU[-1, own_units] = self.own_width
        self.means = nn.Parameter(torch.zeros(num_shared + len(own_units), dtype=torch.float64))
        # A shared move has the factor of its group's units, which are of one kind.
        lr_factors_P = torch.ones_like(self.means.detach())
        lr_factors_P[shared_RU.flatten()] = self.lr_factors_U.repeat(len(shared_RU))
        lr_factors_P[own_U[own_units]] = self.lr_factors_U[own_units]
        zeros_U = torch.zeros(space.num_units, dtype=torch.float64)
        self.register_buffer("keep_probabilities", zeros_U)
        self.register_buffer("initial_logits_U", zeros_U.clone())
        self.register_buffer("widths_RU", widths_RU)
        self.register_buffer("moves_of_RU", moves_of_RU, persistent=False)
        self.register_buffer("group_of_U", group_of_U, persistent=False)
        self.register_buffer("lr_factors_P", lr_factors_P, persistent=False)

    def connect(self, estimator: GradientEstimator) -> None:
        """Let the estimator draw moves. See `MaskPolicy.connect`."""
        assert isinstance(estimator, PGPE), estimator
        estimator.explore(len(self.means), self.explored_masks)

    @torch.no_grad()
    def take_features(self, features_FU: Tensor, slope: float) -> None:
        """Start at the first metric, and scale the slopes' moves. See `MaskPolicy`."""
        self.initial_logits_U.copy_(slope * features_FU[0])
        for row, feature_U in enumerate(features_FU, start=1):
            self.widths_RU[row] = self.slope_width * self._standardized(feature_U)

    def _standardized(self, feature_U: Tensor) -> Tensor:
        """Zero mean and unit variance in each group, (U,); zeros where all are equal."""
        feature_U = feature_U.to(self.initial_logits_U)
        centred_U = feature_U - self._group_means(feature_U)
        deviation_U = self._group_means(centred_U.square()).sqrt()
        scale = float(feature_U.abs().max())
        return torch.where(deviation_U > 1e-12 * scale, centred_U / deviation_U, 0.0)

    def _group_means(self, values_U: Tensor) -> Tensor:
        """The mean of each unit's group, (U,)."""
        counts_G = torch.bincount(self.group_of_U)
        sums_G = values_U.new_zeros(len(counts_G)).index_add_(0, self.group_of_U, values_U)
        return (sums_G / counts_G)[self.group_of_U]

    @torch.no_grad()
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Set the means to zero, the point of the metrics. See `MaskPolicy.start_from`."""
        check_no_layer_bounds(feasible_set)
        self.means.zero_()
        self.project(feasible_set, step=0)

    def explored_masks(self, noise_SP: Tensor) -> Tensor:
        """Make the masks of moves around the means.

        Args:
            noise_SP: Moves, (S, P) float64, in widths.

        Returns:
            Masks, (S, U) bool; each keeps the top units of the budget.
        """
        assert self._feasible_set is not None, "start_from has not been called"
        means = self.means.detach()
        logits_SU = torch.stack([self._logits(means + noise_P) for noise_P in noise_SP])
        return self._feasible_set.deterministic_masks(logits_SU)

    def _logits(self, moves_P: Tensor) -> Tensor:
        return self.initial_logits_U + (moves_P[self.moves_of_RU] * self.widths_RU).sum(dim=0)

    def assign_gradient(self, gradient: Tensor, feasible_set: FeasibleSet, step: int) -> None:
        """Take the gradient of the means, (P,), as it is. See `MaskPolicy.assign_gradient`."""
        del feasible_set, step
        self.means.grad = gradient

    @torch.no_grad()
    def project(self, feasible_set: FeasibleSet, step: int) -> None:
        """Keep the budget, and update the probabilities. See `MaskPolicy.project`."""
        del step
        width_U = self.widths_RU.square().sum(dim=0).sqrt()
        logits_U = _PROBIT_SLOPE * self.ranking / width_U
        self.keep_probabilities.copy_(probabilities_on_budget(logits_U, feasible_set))
        self._feasible_set = feasible_set

    def gradient_norm(self, gradient: Tensor) -> Tensor:
        """The norm over the means, (P,). See `MaskPolicy.gradient_norm`."""
        norm: Tensor = (gradient * self.lr_factors_P).norm()
        return norm

    def step_factors(self) -> list[Tensor]:
        """The factors of the moves' kinds. See `MaskPolicy.step_factors`."""
        return [self.lr_factors_P]

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """The gradient: in widths, the Fisher information of a mean is 1. See `MaskPolicy`."""
        assert self.means.grad is not None
        return [self.means.grad / (1 + damping)]

    @property
    def ranking(self) -> Tensor:
        """The logits at the means, (U,) float64."""
        return self._logits(self.means.detach())
