"""Policies whose parameters make logits, which one shift a budget brings onto it.

Shapes: U units, G groups (the units of one kind in one layer), F metrics, K = 1 + F, N free units.
"""

# No `from __future__ import annotations`: the command line reads these types.
from abc import abstractmethod

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.budget import FeasibleSet
from pgprune_lightning.policy.budgeted_logits import (
    check_no_layer_bounds,
    derivatives,
    logits_of,
    natural_logit_gradient,
    natural_pooled_gradient,
    probabilities_on_budget,
    pull_back,
)
from pgprune_lightning.policy.policies.mask_policy import MaskPolicy
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


class LogitPolicy(MaskPolicy):
    """Probabilities are sigmoids of sharpness times logits, shifted onto the budget exactly.

    Args:
        final_sharpness: What the logits are multiplied by at the end of the run; the factor grows
            from 1 geometrically, and the policy gets surer of its mask. 1 switches it off.

    Raises:
        UserError: The sharpness is not positive.
    """

    sharpness: Tensor
    """What the logits are multiplied by now, a float64 scalar."""

    def __init__(self, final_sharpness: float = 1.0) -> None:
        super().__init__()
        if not 0 < final_sharpness < float("inf"):
            raise UserError(
                "model.policy: final_sharpness must be above 0 and finite, given "
                f"{final_sharpness}; 1 switches it off."
            )
        self.final_sharpness = final_sharpness
        self._max_steps = -1
        self._budget_of_gradient: FeasibleSet | None = None

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make the buffers. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        self.register_buffer(
            "keep_probabilities", torch.zeros(space.num_units, dtype=torch.float64)
        )
        self.register_buffer("sharpness", torch.ones((), dtype=torch.float64))

    def check_length(self, max_steps: int) -> None:
        """Learn when the sharpness is to be reached. See `MaskPolicy.check_length`."""
        if self.final_sharpness != 1 and max_steps < 1:
            raise UserError(
                "model.policy: final_sharpness is reached at trainer.max_steps, which is not set."
            )
        self._max_steps = max_steps

    @torch.no_grad()
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Find parameters for these probabilities. See `MaskPolicy.start_from`."""
        check_no_layer_bounds(feasible_set)
        logits_U = logits_of(probabilities_U.to(self.keep_probabilities), feasible_set)
        self._start_at(logits_U)
        self.project(feasible_set, step=0)

    def assign_gradient(self, gradient_U: Tensor, feasible_set: FeasibleSet, step: int) -> None:
        """Pull the gradient back through shift and sigmoid. See `MaskPolicy.assign_gradient`."""
        self._budget_of_gradient = feasible_set
        pulled_U = pull_back(gradient_U, self._derivatives(feasible_set), feasible_set)
        self._assign_logit_gradient(pulled_U, step)

    @torch.no_grad()
    def project(self, feasible_set: FeasibleSet, step: int) -> None:
        """Shift onto the budget. See `MaskPolicy.project`."""
        sharpness = self.sharpness
        if self.final_sharpness != 1 and self._max_steps > 0:
            grown = self.final_sharpness ** min(step / self._max_steps, 1.0)
            sharpness = torch.full_like(sharpness, grown)
        s_U = probabilities_on_budget(sharpness * self.unit_logits(), feasible_set)
        self.sharpness.copy_(sharpness)
        self.keep_probabilities.copy_(s_U)

    @property
    def ranking(self) -> Tensor:
        """The logits: finer than the probabilities where those are rounded to a bound."""
        return self.unit_logits()

    @abstractmethod
    def unit_logits(self) -> Tensor:
        """The logits before sharpening and shift, (U,) float64, without a graph."""

    @abstractmethod
    def _start_at(self, logits_U: Tensor) -> None:
        """Set the parameters so that the logits are these, as far as the policy can."""

    @abstractmethod
    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        """Write the `.grad` of the parameters, given that of the logits, (U,)."""

    def _derivatives(self, feasible_set: FeasibleSet) -> Tensor:
        """Derivative of each probability by its own logit at a fixed shift, (U,)."""
        return self.sharpness * derivatives(self.keep_probabilities, feasible_set)

    def _last_budget(self) -> FeasibleSet:
        assert self._budget_of_gradient is not None, "no gradient has been assigned"
        return self._budget_of_gradient


class FreeLogits(LogitPolicy):
    """Bernoulli logits: s = sigmoid(logit + shift), the shift of each budget such that it is met.

    Probabilities never reach a bound, so that no unit is lost for good, and no step has to be
    projected. The expected kept cost is the budget, whatever `fill_budget` says.

    Args:
        final_sharpness: What the logits are multiplied by at the end of the run, growing from 1
            geometrically, so that the policy gets surer of its mask; 1 switches it off.

    Raises:
        UserError: The sharpness is not positive.

    Differs: not in the paper. `probability_bounds` are what the sigmoid runs between.
    """

    def __init__(self, final_sharpness: float = 1.0) -> None:
        super().__init__(final_sharpness)

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make the logits. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        self.logits = nn.Parameter(torch.zeros(space.num_units, dtype=torch.float64))

    def unit_logits(self) -> Tensor:
        """The parameter. See `LogitPolicy.unit_logits`."""
        return self.logits.detach()

    def step_factors(self) -> list[Tensor]:
        """The units' own. See `MaskPolicy.step_factors`."""
        return [self.lr_factors_U]

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """One over the Fisher information of the logits, shift included, times the gradient.

        See `MaskPolicy.natural_gradients`.
        """
        feasible_set, gradient_U = self._last_budget(), self.logits.grad
        assert gradient_U is not None
        v_U = self._derivatives(feasible_set)
        s_U = self.keep_probabilities
        return [natural_logit_gradient(gradient_U, s_U, v_U, feasible_set, damping=damping)]

    def _start_at(self, logits_U: Tensor) -> None:
        self.logits.copy_(logits_U)

    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        self.logits.grad = gradient_U


class StructuredLogits(LogitPolicy):
    """The logit of a unit is an offset and a slope on each metric, of its layer and kind.

    A layer's share and how far its metric can be trusted are learned from sums over many units,
    and so within few passes; logits of single units can follow in the same run. It starts at
    `initialization.slope` times the initial metric. As in `FreeLogits`, the logits are shifted onto
    the budget.

    Args:
        features: Metrics beside the initial one that get slopes of their own, such as
            [flap, fisher], normalised as `initialization.normalization` says; they start at 0.
        free_kinds: Kinds of unit that have one free logit each from the start instead, such as
            [kv_group].
        free_after: Number of steps after which every other unit gets a free logit too, added to
            what its layer's numbers say; null: never.
        free_factor: Factor on `lr` for those added logits.
        final_sharpness: What the logits are multiplied by at the end of the run, growing from 1
            geometrically, so that the policy gets surer of its mask; 1 switches it off.

    Raises:
        UserError: A number is out of its range.

    Differs: not in the paper.
    """

    features_FU: Tensor
    """Normalised metrics, the initial one first; in the state, since a resumed run has no text."""
    group_of_U: Tensor
    free_units_N: Tensor
    pooled_units_N: Tensor
    lr_factors_G: Tensor

    def __init__(
        self,
        features: list[str] = [],  # noqa: B006 (read only)
        free_kinds: list[UnitKind] = [],  # noqa: B006 (read only)
        free_after: int | None = None,
        free_factor: float = 1.0,
        final_sharpness: float = 1.0,
    ) -> None:
        super().__init__(final_sharpness)
        if free_after is not None and free_after < 0:
            raise UserError(
                f"model.policy: free_after must be 0 or more steps, given {free_after}."
            )
        if not free_factor > 0:
            raise UserError(f"model.policy: free_factor must be above 0, given {free_factor}.")
        self.feature_names = ("initial", *features)
        self.free_kinds = free_kinds
        self.free_after = free_after
        self.free_factor = free_factor

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make parameters and buffers. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        missing = [kind for kind in self.free_kinds if kind not in space.kinds]
        if missing:
            raise UserError(
                f"model.policy: free_kinds: {missing[0]} is not among unit_kinds "
                f"[{', '.join(space.kinds)}]."
            )
        group_of_U = torch.repeat_interleave(
            torch.arange(len(space.groups)), torch.tensor([g.count for g in space.groups])
        )
        free_U = torch.zeros(space.num_units, dtype=torch.bool)
        for kind in self.free_kinds:
            free_U[space.units_of(kind)] = True
        factors_G = self.lr_factors_U[torch.tensor([group.start for group in space.groups])]
        features_FU = torch.zeros(len(self.feature_names), space.num_units, dtype=torch.float64)
        self.register_buffer("features_FU", features_FU)
        for name, values in {
            "group_of_U": group_of_U,
            "free_units_N": free_U.nonzero()[:, 0],
            "pooled_units_N": (~free_U).nonzero()[:, 0],
            "lr_factors_G": factors_G,
        }.items():
            self.register_buffer(name, values, persistent=False)
        self._make_parameters(len(space.groups))

    def _make_parameters(self, num_groups: int) -> None:
        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=torch.float64))

        # The offset first, then the slopes: (G, K).
        self.offsets_and_slopes = zeros(num_groups, 1 + len(self.feature_names))
        self.free_logits = zeros(len(self.free_units_N)) if self.free_kinds else None
        self.added_logits = None if self.free_after is None else zeros(len(self.pooled_units_N))

    @torch.no_grad()
    def take_features(self, features_FU: Tensor, slope: float) -> None:
        """Keep the metrics, and start at the first. See `MaskPolicy.take_features`."""
        self.features_FU.copy_(features_FU)
        self.offsets_and_slopes.zero_()
        self.offsets_and_slopes[:, 1] = slope

    def unit_logits(self) -> Tensor:
        """From the layers' numbers, and the units' own. See `LogitPolicy.unit_logits`."""
        numbers_UK = self.offsets_and_slopes.detach()[self.group_of_U]
        logits_U = (numbers_UK * self._multipliers()).sum(dim=1)
        if self.free_logits is not None:
            logits_U[self.free_units_N] = self.free_logits.detach()
        if self.added_logits is not None:
            logits_U[self.pooled_units_N] += self.added_logits.detach()
        return logits_U

    def step_factors(self) -> list[Tensor]:
        """Those of the kinds, and that of the added logits. See `MaskPolicy.step_factors`."""
        factors = [self.lr_factors_G[:, None]]
        if self.free_logits is not None:
            factors.append(self.lr_factors_U[self.free_units_N])
        if self.added_logits is not None:
            factors.append(self.free_factor * self.lr_factors_U[self.pooled_units_N])
        return factors

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Solve with the Fisher information, that of each kind of parameter by itself.

        See `MaskPolicy.natural_gradients`.
        """
        feasible_set, s_U = self._last_budget(), self.keep_probabilities
        v_U, gradient_GK = self._derivatives(feasible_set), self.offsets_and_slopes.grad
        assert gradient_GK is not None
        natural: list[Tensor | None] = [
            natural_pooled_gradient(
                gradient_GK,
                self._multipliers(),
                self.group_of_U,
                s_U,
                v_U,
                feasible_set,
                damping=damping,
            )
        ]
        single_U = natural_logit_gradient(
            self._logit_gradient_U, s_U, v_U, feasible_set, damping=damping
        )
        if self.free_logits is not None:
            natural.append(single_U[self.free_units_N])
        if self.added_logits is not None:
            joined = self.added_logits.grad is not None
            natural.append(single_U[self.pooled_units_N] if joined else None)
        return natural

    def _multipliers(self) -> Tensor:
        """What each unit multiplies its group's numbers by, (U, K): 1 and its metrics, or zeros."""
        ones_U1 = torch.ones_like(self.features_FU[0])[:, None]
        multipliers_UK = torch.cat([ones_U1, self.features_FU.T], dim=1)
        return multipliers_UK.index_fill_(0, self.free_units_N, 0)

    def _start_at(self, logits_U: Tensor) -> None:
        # The metrics say where to start, and not the probabilities: those hold the budget's shift,
        # which single logits, that compete with pooled ones, must not have in them.
        if self.free_logits is not None:
            slopes_U = self.offsets_and_slopes[self.group_of_U, 1]
            self.free_logits.copy_((slopes_U * self.features_FU[0])[self.free_units_N])

    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        self._logit_gradient_U = gradient_U
        gradient_GK = torch.zeros_like(self.offsets_and_slopes)
        gradient_GK.index_add_(0, self.group_of_U, gradient_U[:, None] * self._multipliers())
        self.offsets_and_slopes.grad = gradient_GK
        if self.free_logits is not None:
            self.free_logits.grad = gradient_U[self.free_units_N]
        if self.added_logits is not None:
            joined = self.free_after is not None and step >= self.free_after
            self.added_logits.grad = gradient_U[self.pooled_units_N] if joined else None
