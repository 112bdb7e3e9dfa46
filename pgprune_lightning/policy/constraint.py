"""The budgets as constraints on the free units, and what makes them impossible.

Shapes: U units of the whole model, N free units of one constraint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import Literal

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.layer_bounds import ANY_RATIO, GroupBounds, bound_groups
from pgprune_lightning.policy.unit_layout import UnitGroup, UnitLayout

BudgetScope = Literal["per_kind", "per_layer", "units", "parameters"]

_SLACK = 1e-12  # of the rounding of products of ratios and costs


@dataclass(frozen=True)
class Constraint:
    """One budget: the kept cost of some free units is at most the limit.

    Args:
        name: What is counted, for messages.
        units: Flat indices of the free units, (N,) int64, ascending, N >= 1.
        costs: Cost of each, (N,) float64: 1, or its parameters.
        limit: Kept cost that is allowed, already less that of the protected units.
        lower: Least keep probability.
        upper: Greatest keep probability.
        groups: Bounds of each layer and kind, one group after another; empty: there are none.
    """

    name: str
    units: Tensor
    costs: Tensor
    limit: float
    lower: float
    upper: float
    groups: tuple[GroupBounds, ...] = ()

    @cached_property
    def total_cost(self) -> float:
        """Cost of all its units."""
        return float(self.costs.sum())


def build_constraints(
    space: UnitLayout,
    keep_ratio: float,
    scope: BudgetScope,
    protected_layers: Sequence[int],
    lower: float,
    upper: float,
    layer_keep_ratios: tuple[float, float] = ANY_RATIO,
) -> tuple[Constraint, ...]:
    """Make the constraints of a feasible set; see `FeasibleSet` for the arguments and errors."""
    _check_ranges(keep_ratio, lower, upper)
    protected = layer_indices(protected_layers, space.num_layers)
    costs_U = scope_costs(space, scope)
    constraints = []
    for name, groups in _spans(space, scope):
        if all(group.layer in protected for group in groups):
            continue
        total_costs = costs_U[_indices(groups)]
        limit = _limit(name, total_costs, keep_ratio)
        pinned = _indices([group for group in groups if group.layer in protected])
        free = [group for group in groups if group.layer not in protected]
        units = _indices(free)
        pinned_cost = _protected_cost(name, costs_U[pinned], costs_U[units], limit)
        limit -= pinned_cost
        free_cost = float(costs_U[units].sum())
        bounds = _bounds(name, lower, upper, limit / free_cost)
        constraint = Constraint(name, units, costs_U[units], limit, *bounds)
        if tuple(layer_keep_ratios) != ANY_RATIO:
            share = (keep_ratio * float(total_costs.sum()) - pinned_cost) / free_cost
            constraint = _bound(constraint, free, layer_keep_ratios, share)
        constraints.append(constraint)
    if not constraints and keep_ratio < 1:
        raise UserError(
            f"Every layer is protected, and a keep ratio of {keep_ratio} leaves none to prune. "
            "Protect fewer layers."
        )
    return tuple(constraints)


def scope_costs(space: UnitLayout, scope: BudgetScope) -> Tensor:
    """What each unit counts in a budget, (U,) float64: its parameters, or 1."""
    costs_U = space.unit_costs_U
    return costs_U if scope == "parameters" else torch.ones_like(costs_U)


def _check_ranges(keep_ratio: float, lower: float, upper: float) -> None:
    if not 0 < keep_ratio <= 1:
        raise UserError(
            f"The keep ratio is {keep_ratio}. Give a number above 0 and at most 1; 0.7 keeps "
            "70 % and prunes 30 %."
        )
    if not 0 <= lower < upper <= 1:
        raise UserError(
            f"The bounds of the keep probabilities are {lower} and {upper}. "
            "Give 0 <= lower < upper <= 1."
        )


def layer_indices(layers: Sequence[int], num_layers: int) -> set[int]:
    """The indices of layers, of which negative ones count from the end.

    Raises:
        UserError: If there is no such layer.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise UserError(
                f"Protected layer {layer} does not exist: the model has layers 0 to "
                f"{num_layers - 1}, or -{num_layers} to -1 from the end."
            )
    return {layer % num_layers for layer in layers}


def _spans(space: UnitLayout, scope: BudgetScope) -> Iterator[tuple[str, list[UnitGroup]]]:
    """Yield the name and the groups of each constraint."""
    if scope == "per_kind":
        for kind in space.kinds:
            yield kind, [group for group in space.groups if group.kind == kind]
    elif scope == "per_layer":
        for group in space.groups:
            yield f"{group.kind} in layer {group.layer}", [group]
    else:
        yield scope, list(space.groups)


def _indices(groups: Sequence[UnitGroup]) -> Tensor:
    return torch.cat([torch.arange(0), *(torch.arange(g.start, g.end) for g in groups)])


def _limit(name: str, costs: Tensor, keep_ratio: float) -> float:
    """Round the kept cost down to a whole unit or parameter."""
    total, cheapest = float(costs.sum()), float(costs.min())
    # Relative slack, so that 0.58 of 100 is 58 although the product is 57.99999999999999.
    limit = math.floor(keep_ratio * total * (1 + _SLACK))
    if limit < cheapest:
        raise UserError(
            f"A keep ratio of {keep_ratio} keeps no unit of the budget '{name}', which is "
            f"{total:.0f} in all. Give at least {_rounded_up(cheapest / total)}."
        )
    return float(limit)


def _protected_cost(name: str, pinned_costs: Tensor, free_costs: Tensor, limit: float) -> float:
    cost, total = float(pinned_costs.sum()), float(pinned_costs.sum() + free_costs.sum())
    if cost > limit:
        raise UserError(
            f"The protected layers hold {cost / total:.1%} of the budget '{name}', but only "
            f"{limit / total:.1%} may be kept. Give a keep ratio of at least "
            f"{_rounded_up(cost / total)}, protect fewer layers, or use another scope."
        )
    return cost


def _bounds(name: str, lower: float, upper: float, share: float) -> tuple[float, float]:
    """Check the bounds against the share of the free units that may be kept."""
    if lower > share * (1 + _SLACK):
        raise UserError(
            f"With every probability at the lower bound {lower} the budget '{name}' is exceeded. "
            f"Give a lower bound of at most {math.floor(share * 1e4) / 1e4}."
        )
    return lower, upper if upper >= share else 1.0


def _bound(
    constraint: Constraint, free: Sequence[UnitGroup], ratios: tuple[float, float], share: float
) -> Constraint:
    """Add the bounds of the free groups, where those of the probabilities leave room for them."""
    counts = [group.count for group in free]
    starts = [end - count for end, count in zip(accumulate(counts), counts, strict=True)]
    costs = constraint.costs[starts].tolist()
    groups = bound_groups(
        constraint.name, counts, costs, ratios, limit=constraint.limit, share=share
    )
    lower, upper = constraint.lower, constraint.upper
    least = sum(map(mul, costs, [max(group.least, lower * group.count) for group in groups]))
    most = sum(map(mul, costs, [min(group.most, upper * group.count) for group in groups]))
    too_low = any(lower * group.count > group.most for group in groups)
    if too_low or least > constraint.limit * (1 + _SLACK):
        ratio = min(group.least / group.count for group in groups)
        raise UserError(
            f"With every probability at least at its lower bound {lower} the budget "
            f"'{constraint.name}' or the maximum of a layer in layer_keep_ratios is exceeded. "
            f"Give a lower bound of at most {math.floor(ratio * 1e4) / 1e4}."
        )
    too_high = any(upper * group.count < group.least for group in groups)
    if too_high or most < constraint.limit * (1 - _SLACK):
        upper = 1.0
    return replace(constraint, upper=upper, groups=groups)


def _rounded_up(ratio: float) -> float:
    return min(1.0, math.ceil(ratio * 1e4) / 1e4)
