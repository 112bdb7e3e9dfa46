"""Policies: learned parameters, and the keep-probabilities that follow from them.

Shapes: U units, G groups (the units of one kind in one layer), F metrics, K = 1 + F, N some units.
"""

# No `from __future__ import annotations`: the command line reads these types.
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.budgeted_logits import (
    check_no_layer_bounds,
    derivatives,
    logits_of,
    natural_logit_gradient,
    natural_pooled_gradient,
    probabilities_on_budget,
    pull_back,
)
from pgprune_lightning.policy.estimators import GradientEstimator, MovingAverageBaseline
from pgprune_lightning.policy.feasible_set import FeasibleSet
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


class MaskPolicy(nn.Module, ABC):
    """Independent Bernoulli variables whose probabilities follow from parameters.

    An optimizer steps the parameters. `keep_probabilities`, (U,) float64, is always in the state,
    as a parameter or as a buffer, and always within budget and bounds between steps.
    """

    keep_probabilities: Tensor
    own_estimator: ClassVar[type[GradientEstimator] | None] = None
    """The only estimator that works with the policy; None: any that has no policy of its own."""
    lr_factors_U: Tensor
    """Factor on the step of each unit; not in the state."""
    feature_names: tuple[str, ...] = ()
    """Metrics whose normalised values `take_features` needs; `initial` is the initial metric."""

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make parameters and buffers of the right shapes.

        Args:
            space: The units.
            lr_factors: Factor on the step by unit kind; 1 for kinds left out.
        """
        factors_U = torch.ones(space.num_units, dtype=torch.float64)
        for kind, factor in lr_factors.items():
            factors_U[space.units_of(kind)] = factor
        self.register_buffer("lr_factors_U", factors_U, persistent=False)

    @classmethod
    def default_estimator(cls) -> type[GradientEstimator]:
        """The class of the estimator where the user gives none."""
        return cls.own_estimator or MovingAverageBaseline

    def estimator_or_default(self, given: GradientEstimator | None) -> GradientEstimator:
        """Choose the estimator of a run.

        Args:
            given: The user's choice; None: the default.

        Raises:
            UserError: It does not work with the policy.
        """
        estimator = self.default_estimator()() if given is None else given
        policy = type(self).__name__
        if self.own_estimator is not None and not isinstance(estimator, self.own_estimator):
            raise UserError(
                f"model.estimator: {policy} has its own, {self.own_estimator.__name__}, given "
                f"{type(estimator).__name__}. Leave model.estimator out, or set it to null."
            )
        for part in estimator.modules() if self.own_estimator is None else ():
            if isinstance(part, GradientEstimator) and part.needs_its_policy:
                raise UserError(
                    f"model.estimator: {type(part).__name__} does not suit {policy}. Choose "
                    f"another, or set it to null for {self.default_estimator().__name__}."
                )
        return estimator

    def connect(self, estimator: GradientEstimator) -> None:
        """Connect the run's estimator to the policy, after `prepare`."""
        del estimator

    def check_length(self, max_steps: int) -> None:
        """Learn the number of steps of the run, -1 for no end.

        Raises:
            UserError: An option of the policy needs another length.
        """
        del max_steps

    def take_features(self, features_FU: Tensor, slope: float) -> None:
        """Take the values of the metrics that `feature_names` lists, before `start_from`.

        Args:
            features_FU: Normalised values, (F, U) float64.
            slope: Factor on the first metric that gives the initial logits.
        """
        raise NotImplementedError

    @abstractmethod
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Set the parameters so that the probabilities are these, as far as the policy can.

        Args:
            probabilities_U: Feasible probabilities, (U,) float64.
            feasible_set: Budgets and bounds of the first step.

        Raises:
            UserError: The policy does not support such budgets.
        """

    @abstractmethod
    def assign_gradient(self, gradient_U: Tensor, feasible_set: FeasibleSet, step: int) -> None:
        """Set the `.grad` of the parameters by the chain rule.

        Args:
            gradient_U: d E[loss] / d s, (U,) float64, in nats per token; the return value of an
                own estimator, whatever its shape.
            feasible_set: Budgets and bounds of the present probabilities.
            step: Number of steps taken so far.
        """

    def gradient_norm(self, gradient_U: Tensor) -> Tensor:
        """The norm of a gradient as `assign_gradient` takes it, times `lr_factors`."""
        norm: Tensor = (gradient_U * self.lr_factors_U).norm()
        return norm

    @abstractmethod
    def project(self, feasible_set: FeasibleSet, step: int) -> None:
        """Bring the probabilities back onto the budget after the parameters have moved.

        A second call with the same arguments changes nothing.

        Args:
            feasible_set: Budgets and bounds of the next step.
            step: Number of steps taken, this one included.
        """

    @abstractmethod
    def step_factors(self) -> list[Tensor]:
        """Factors on the steps of the parameters, in their order, broadcastable to each."""

    @abstractmethod
    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Natural gradients of the parameters, in their order, from the assigned gradient.

        Args:
            damping: Added to the Fisher information of each unit's parameter, positive.
        """

    @property
    def ranking(self) -> Tensor:
        """Values by which the deterministic mask ranks the units of a budget, (U,) float64."""
        return self.keep_probabilities.detach()


def units_of_kinds(space: UnitLayout, kinds: Sequence[UnitKind], option: str) -> Tensor:
    """Flat indices of the units of some kinds, (N,) int64, one kind after another.

    Raises:
        UserError: The model has no units of a kind.
    """
    for kind in kinds:
        if kind not in space.kinds:
            raise UserError(
                f"model.policy: {option}: {kind} is not among units.kinds "
                f"[{', '.join(space.kinds)}]."
            )
    return torch.cat([torch.arange(0), *(space.units_of(kind) for kind in kinds)])


def group_of_units(space: UnitLayout) -> Tensor:
    """Index of each unit's group, (U,) int64."""
    counts_G = torch.tensor([group.count for group in space.groups])
    return torch.arange(len(counts_G)).repeat_interleave(counts_G)


class FreeProbabilities(MaskPolicy):
    """The keep-probabilities are the parameters; each step is projected onto the budget.

    Source: eqs. 2, 3 and 6.
    """

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make the parameter. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        self.keep_probabilities = nn.Parameter(torch.zeros(space.num_units, dtype=torch.float64))

    @torch.no_grad()
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Take the probabilities as they are. See `MaskPolicy.start_from`."""
        self.keep_probabilities.copy_(probabilities_U)

    def assign_gradient(self, gradient_U: Tensor, feasible_set: FeasibleSet, step: int) -> None:
        """Take the gradient as it is. See `MaskPolicy.assign_gradient`."""
        self.keep_probabilities.grad = gradient_U

    @torch.no_grad()
    def project(self, feasible_set: FeasibleSet, step: int) -> None:
        """Project onto the budget. See `MaskPolicy.project`."""
        self.keep_probabilities.copy_(feasible_set.project(self.keep_probabilities))

    def step_factors(self) -> list[Tensor]:
        """The factors of the units. See `MaskPolicy.step_factors`."""
        return [self.lr_factors_U]

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Divide by the Fisher information 1 / (s (1 - s)). See `MaskPolicy.natural_gradients`."""
        s_U, gradient_U = self.keep_probabilities.detach(), self.keep_probabilities.grad
        assert gradient_U is not None
        variance_U = s_U * (1 - s_U)
        return [gradient_U * variance_U / (1 + damping * variance_U)]


class LogitPolicy(MaskPolicy):
    """Probabilities are sigmoids of sharpness times logits, shifted exactly onto the budget.

    Args:
        final_sharpness: Factor on the logits at the end of the run; it grows geometrically from 1,
            so the policy becomes more certain of its mask. 1 switches it off.

    Raises:
        UserError: The sharpness is not positive.
    """

    sharpness: Tensor
    """Present factor on the logits, a float64 scalar."""

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
        """Learn when the final sharpness is due. See `MaskPolicy.check_length`."""
        if self.final_sharpness != 1 and max_steps < 1:
            raise UserError(
                "model.policy: final_sharpness is reached at trainer.max_steps, which is not set."
            )
        self._max_steps = max_steps

    @torch.no_grad()
    def start_from(self, probabilities_U: Tensor, feasible_set: FeasibleSet) -> None:
        """Find parameters for these probabilities. See `MaskPolicy.start_from`."""
        check_no_layer_bounds(feasible_set)
        self._start_at(logits_of(probabilities_U.to(self.keep_probabilities), feasible_set))
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
        """The logits, which differ where probabilities round to the same bound."""
        return self.unit_logits()

    @abstractmethod
    def unit_logits(self) -> Tensor:
        """The logits before sharpening and shift, (U,) float64, without a graph."""

    @abstractmethod
    def _start_at(self, logits_U: Tensor) -> None:
        """Set the parameters so that the logits are these, as far as the policy can."""

    @abstractmethod
    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        """Set the `.grad` of the parameters from that of the logits, (U,)."""

    def _derivatives(self, feasible_set: FeasibleSet) -> Tensor:
        """Derivative of each probability by its own logit at a fixed shift, (U,)."""
        return self.sharpness * derivatives(self.keep_probabilities, feasible_set)

    def _last_budget(self) -> FeasibleSet:
        assert self._budget_of_gradient is not None, "no gradient has been assigned"
        return self._budget_of_gradient


class FreeLogits(LogitPolicy):
    """Bernoulli logits: s = sigmoid(logit + shift), with one shift a budget that meets it.

    Probabilities never reach a bound, so no unit is lost for good and no step is projected. The
    expected kept cost is exactly the budget, whatever `fill_budget` says.

    Differs: not in the paper. The sigmoid runs between the `probability_bounds`.
    """

    def prepare(self, space: UnitLayout, lr_factors: dict[UnitKind, float]) -> None:
        """Make the logits. See `MaskPolicy.prepare`."""
        super().prepare(space, lr_factors)
        self.logits = nn.Parameter(torch.zeros(space.num_units, dtype=torch.float64))

    def unit_logits(self) -> Tensor:
        """The parameter. See `LogitPolicy.unit_logits`."""
        return self.logits.detach()

    def step_factors(self) -> list[Tensor]:
        """The factors of the units. See `MaskPolicy.step_factors`."""
        return [self.lr_factors_U]

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Solve with the Fisher information, shift included. See `MaskPolicy.natural_gradients`."""
        feasible_set, gradient_U = self._last_budget(), self.logits.grad
        assert gradient_U is not None
        s_U, v_U = self.keep_probabilities, self._derivatives(feasible_set)
        return [natural_logit_gradient(gradient_U, s_U, v_U, feasible_set, damping=damping)]

    def _start_at(self, logits_U: Tensor) -> None:
        self.logits.copy_(logits_U)

    def _assign_logit_gradient(self, gradient_U: Tensor, step: int) -> None:
        self.logits.grad = gradient_U


class StructuredLogits(LogitPolicy):
    """The logit of a unit is an offset plus slopes times metrics, shared by its layer and kind.

    The share of a layer and the reliability of its metrics are learned from sums over many units,
    and so within few passes; logits of single units can follow in the same run. It starts at
    `initialization.slope` times the initial metric. As in `FreeLogits`, the logits are shifted onto
    the budget.

    Args:
        features: Metrics beside the initial one that get slopes of their own, such as
            [flap, fisher], normalised as `initialization.normalization` says; they start at 0.
        free_kinds: Kinds of unit that have one free logit a unit from the start instead, such as
            [kv_group].
        free_after: Number of steps after which every other unit gets a free logit too, added to
            that of its layer and kind; null: never.
        free_factor: Factor on `lr` for those added logits.
        final_sharpness: Factor on the logits at the end of the run; it grows geometrically from 1,
            so the policy becomes more certain of its mask. 1 switches it off.

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
        free_U = torch.zeros(space.num_units, dtype=torch.bool)
        free_U[units_of_kinds(space, self.free_kinds, "free_kinds")] = True
        features_FU = torch.zeros(len(self.feature_names), space.num_units, dtype=torch.float64)
        self.register_buffer("features_FU", features_FU)
        for name, values in {
            "group_of_U": group_of_units(space),
            "free_units_N": free_U.nonzero()[:, 0],
            "pooled_units_N": (~free_U).nonzero()[:, 0],
            "lr_factors_G": self.lr_factors_U[[group.start for group in space.groups]],
        }.items():
            self.register_buffer(name, values, persistent=False)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=torch.float64))

        # The offset first, then the slopes: (G, K).
        self.offsets_and_slopes = zeros(len(space.groups), 1 + len(self.feature_names))
        self.free_logits = zeros(len(self.free_units_N)) if self.free_kinds else None
        self.added_logits = None if self.free_after is None else zeros(len(self.pooled_units_N))

    @torch.no_grad()
    def take_features(self, features_FU: Tensor, slope: float) -> None:
        """Keep the metrics, and start at the first. See `MaskPolicy.take_features`."""
        self.features_FU.copy_(features_FU)
        self.offsets_and_slopes.zero_()
        self.offsets_and_slopes[:, 1] = slope

    def unit_logits(self) -> Tensor:
        """Offsets, slopes and single logits together. See `LogitPolicy.unit_logits`."""
        numbers_UK = self.offsets_and_slopes.detach()[self.group_of_U]
        logits_U = (numbers_UK * self._multipliers()).sum(dim=1)
        if self.free_logits is not None:
            logits_U[self.free_units_N] = self.free_logits.detach()
        if self.added_logits is not None:
            logits_U[self.pooled_units_N] += self.added_logits.detach()
        return logits_U

    def step_factors(self) -> list[Tensor]:
        """The factors of the kinds, and of the added logits. See `MaskPolicy.step_factors`."""
        factors = [self.lr_factors_G[:, None]]
        if self.free_logits is not None:
            factors.append(self.lr_factors_U[self.free_units_N])
        if self.added_logits is not None:
            factors.append(self.free_factor * self.lr_factors_U[self.pooled_units_N])
        return factors

    def natural_gradients(self, damping: float) -> list[Tensor | None]:
        """Solve with the Fisher information of each kind of parameter by itself.

        See `MaskPolicy.natural_gradients`.
        """
        feasible_set, s_U = self._last_budget(), self.keep_probabilities
        v_U, gradient_GK = self._derivatives(feasible_set), self.offsets_and_slopes.grad
        assert gradient_GK is not None
        features = self._multipliers(), self.group_of_U
        natural: list[Tensor | None] = [
            natural_pooled_gradient(gradient_GK, *features, s_U, v_U, feasible_set, damping=damping)
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
        """Factors on the numbers of each unit's group, (U, K): 1 and its metrics, or zeros."""
        ones_U1 = torch.ones_like(self.features_FU[0])[:, None]
        multipliers_UK = torch.cat([ones_U1, self.features_FU.T], dim=1)
        return multipliers_UK.index_fill_(0, self.free_units_N, 0)

    def _start_at(self, logits_U: Tensor) -> None:
        # The metrics determine the start. The probabilities do not: they include the budget's
        # shift, which single logits must not have, because they compete with pooled ones.
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
