"""The feasible set of keep probabilities: project onto it, and cut one mask from it.

Shapes: U units of the whole model, N free units of one constraint, S masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pgprune_lightning.policy.constraint import (
    BudgetScope,
    Constraint,
    build_constraints,
    scope_costs,
)
from pgprune_lightning.policy.layer_bounds import (
    ANY_RATIO,
    forced_and_allowed,
    project_within_groups,
)
from pgprune_lightning.policy.projection import project_onto_budget
from pgprune_lightning.policy.top_k import (
    BlockedGroup,
    blocked_groups,
    greedy_knapsack,
    kept_blocks,
    top_units,
)
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout

__all__ = ["BudgetScope", "Constraint", "FeasibleSet"]


class FeasibleSet:
    """The keep probabilities that meet every budget, with some layers kept whole.

    Args:
        space: The units.
        keep_ratio: Share of the cost to keep, above 0 and at most 1.
        scope: What a budget spans: `per_kind`, the units of each kind; `per_layer`, those of each
            kind in each layer; `units`, all units alike; `parameters`, all units by their
            parameters. A limit is rounded down to a whole unit or parameter.
        protected_layers: Layers whose units stay, negative from the end. They count in the budget,
            but a budget whose units are all protected, as `per_layer` has, is dropped.
        lower: Least keep probability of the other units.
        upper: Greatest keep probability of the other units; 1 in a constraint whose budget lies
            out of reach below that.
        fill: Meet the budgets exactly, and not only at most.
        layer_keep_ratios: Least and greatest share that each kind keeps of its units in each layer
            that is not protected, in masks and in expectation, rounded to whole units (see
            `bound_groups`).
        multiples: Units of a kind that stay or go together in each layer of deterministic masks;
            probabilities are free of it.

    Attributes:
        constraints: The budgets.
        costs_U: What each unit counts in one: its parameters, or 1, (U,), float64, CPU.

    Raises:
        UserError: The ratio or a bound is out of range, a layer does not exist, or a budget is
            impossible.

    Source: eq. 3 (`units`); the paper's code (`per_kind`).
    Differs: `parameters`, protected layers, all bounds and `fill` are not in the paper.
    """

    def __init__(
        self,
        space: UnitLayout,
        keep_ratio: float,
        *,
        scope: BudgetScope = "per_kind",
        protected_layers: Sequence[int] = (),
        lower: float = 0.0,
        upper: float = 1.0,
        fill: bool = False,
        layer_keep_ratios: tuple[float, float] = ANY_RATIO,
        multiples: Mapping[UnitKind, int] | None = None,
    ) -> None:
        """Check that the budgets can be met."""
        self._space = space
        self._fill = fill
        self.constraints: tuple[Constraint, ...] = build_constraints(
            space, keep_ratio, scope, protected_layers, lower, upper, layer_keep_ratios
        )
        self._blocks = [_blocked(space, part, multiples or {}) for part in self.constraints]
        self.costs_U = scope_costs(space, scope)
        self._constraints_on: dict[torch.device, tuple[Constraint, ...]] = {}

    def project(self, z_U: Tensor) -> Tensor:
        """Find the nearest feasible probabilities.

        Args:
            z_U: Any finite point, (U,) float64.

        Returns:
            The probabilities, (U,) in the dtype of `z_U`; protected units have exactly 1.

        Raises:
            UserError: `z_U` is not finite.
        """
        assert z_U.shape == (self._space.num_units,), z_U.shape
        s_U = torch.ones_like(z_U)
        for constraint in self.constraints_on(z_U.device):
            s_U[constraint.units] = self._projected(z_U[constraint.units], constraint)
        return s_U

    def constraints_on(self, device: torch.device) -> tuple[Constraint, ...]:
        """The constraints with their tensors on a device, copied there once."""
        if device not in self._constraints_on:
            self._constraints_on[device] = tuple(
                replace(part, units=part.units.to(device), costs=part.costs.to(device))
                for part in self.constraints
            )
        return self._constraints_on[device]

    def _projected(self, z_N: Tensor, constraint: Constraint) -> Tensor:
        lower, upper = constraint.lower, constraint.upper
        if constraint.groups:
            return project_within_groups(
                z_N,
                constraint.limit,
                constraint.groups,
                costs_N=constraint.costs,
                lower=lower,
                upper=upper,
                fill=self._fill,
            )
        return project_onto_budget(
            z_N,
            constraint.limit,
            costs_U=constraint.costs,
            lower=lower,
            upper=upper,
            fill=self._fill,
        )

    def deterministic_mask(self, s_U: Tensor) -> Tensor:
        """Keep the most probable units of each budget, as many as it holds.

        Equal probabilities rank by flat index. Where units differ in cost, one that does not fit
        is passed over for later ones that do, so what is left unused is less than the least cost
        of a dropped unit that may still be kept. With layer bounds the first of each layer and
        kind come before all others, as many as its minimum; those beyond its maximum never stay.
        With multiples, `kept_blocks` says which units stay.

        Args:
            s_U: Probabilities, (U,); only their order within a constraint counts.

        Returns:
            The mask, (U,) bool, True keeps.
        """
        return self.deterministic_masks(s_U[None])[0]

    def deterministic_masks(self, s_SU: Tensor) -> Tensor:
        """Do for each row, (S, U), what `deterministic_mask` does."""
        assert s_SU.shape == (len(s_SU), self._space.num_units), s_SU.shape
        masks_SU = torch.ones_like(s_SU, dtype=torch.bool)
        constraints = self.constraints_on(s_SU.device)
        for constraint, blocks in zip(constraints, self._blocks, strict=True):
            for s_U, mask_U in zip(s_SU, masks_SU, strict=True):
                mask_U[constraint.units] = _kept(s_U[constraint.units], constraint, blocks)
        return masks_SU

    def contains(self, s_U: Tensor, tolerance: float = 1e-9) -> bool:
        """Whether probabilities, (U,), are feasible, but for a tolerance.

        Args:
            s_U: The probabilities.
            tolerance: How far a probability may be outside, and a kept cost relative to its limit.
        """
        free_U = torch.zeros(self._space.num_units, dtype=torch.bool)
        for constraint in self.constraints:
            s_N = s_U.detach().cpu().double()[constraint.units]
            free_U[constraint.units] = True
            inside = (s_N >= constraint.lower - tolerance) & (s_N <= constraint.upper + tolerance)
            excess = float(constraint.costs @ s_N) - constraint.limit
            excess = abs(excess) if self._fill else excess
            # "not <=", so that NaN is outside.
            if not inside.all() or not excess <= tolerance * max(1.0, constraint.limit):
                return False
            if not all(group.holds(s_N, tolerance * group.count) for group in constraint.groups):
                return False
        return bool((s_U.detach().cpu()[~free_U] == 1).all())

    def expected_keep_ratio(self, s_U: Tensor) -> float:
        """Expected kept share of the cost, from 0 to 1, under probabilities (U,).

        Every unit counts, protected ones too: by its parameters if the scope is `parameters`,
        otherwise alike.
        """
        kept = self.costs_U @ s_U.detach().cpu().double()
        return float(kept / self.costs_U.sum())


def _blocked(
    space: UnitLayout, constraint: Constraint, multiples: Mapping[UnitKind, int]
) -> tuple[BlockedGroup, ...]:
    """The blocks of a constraint's groups; none where every unit is one of its own."""
    free = set(constraint.units.tolist())
    groups = [group for group in space.groups if group.start in free]
    if all(multiples.get(group.kind, 1) == 1 for group in groups):
        return ()
    bounds = [(part.least, part.most) for part in constraint.groups]
    bounds = bounds or [(0, group.count) for group in groups]
    return blocked_groups(groups, constraint.costs, multiples, constraint.limit, bounds)


def _kept(s_N: Tensor, constraint: Constraint, blocks: tuple[BlockedGroup, ...]) -> Tensor:
    """The most probable units that a budget holds, (N,) bool."""
    if blocks:
        return kept_blocks(s_N, blocks, constraint.limit)
    if constraint.groups:
        return _kept_within_groups(s_N, constraint)
    return top_units(s_N, constraint.costs, constraint.limit)


def _kept_within_groups(s_N: Tensor, constraint: Constraint) -> Tensor:
    """The most probable units that layer bounds allow, (N,) bool."""
    ranked_N = s_N.argsort(descending=True, stable=True)
    costs_N = constraint.costs[ranked_N]
    kept_N, allowed_N = forced_and_allowed(ranked_N, constraint.groups)
    rest_N = allowed_N & ~kept_N
    kept_N[rest_N] = greedy_knapsack(
        costs_N[rest_N], constraint.limit - float(costs_N[kept_N].sum())
    )
    return torch.zeros_like(kept_N).scatter_(0, ranked_N, kept_N)
