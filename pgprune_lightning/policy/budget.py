"""Budgets: constraints on the free units, with bounds of layers and blocks of units.

Shapes: U units of the whole model, N free units of one constraint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import Literal

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.unit_layout import UnitGroup, UnitKind, UnitLayout

BudgetScope = Literal["per_kind", "per_layer", "units", "parameters"]

ANY_RATIO = (0.0, 1.0)
"""Bounds of layers that allow everything."""

_SLACK = 1e-12  # for the rounding of ratios times numbers of units or costs


@dataclass(frozen=True)
class GroupBounds:
    """Fewest and most units of one layer and kind that stay, in masks and in expectation.

    Args:
        start: Index of the group's first unit among those of its budget.
        end: Index after its last.
        least: Fewest units.
        most: Most units.
    """

    start: int
    end: int
    least: int
    most: int

    @property
    def count(self) -> int:
        """Number of units."""
        return self.end - self.start

    def allows(self, total: float, slack: float = 0.0) -> bool:
        """Whether a mask or probabilities of the group may sum to a total."""
        return self.least - slack <= total <= self.most + slack


@dataclass(frozen=True)
class GroupBlocks:
    """Blocks of units of one layer and kind, which masks keep or drop as a whole.

    Args:
        start: Index of the group's first unit among those of its budget.
        end: Index after its last.
        size: Units of a block.
        unit_cost: Cost of each unit.
        least: Blocks that stay in every mask.
        most: Blocks that may stay.
    """

    start: int
    end: int
    size: int
    unit_cost: float
    least: int
    most: int


@dataclass(frozen=True)
class Constraint:
    """One budget: the kept cost of some free units is at most the limit.

    Args:
        name: Name of the budget, for messages.
        units: Flat indices of the free units, (N,) int64, ascending, N >= 1.
        costs: Cost of each, (N,) float64: 1, or its parameters.
        limit: Kept cost that is allowed, after subtraction of that of the protected units.
        lower: Least keep probability.
        upper: Greatest keep probability.
        groups: Bounds of each layer and kind, one group after another; empty: there are none.
        blocks: Blocks of each layer and kind; empty: masks are free of blocks and bounds.
    """

    name: str
    units: Tensor
    costs: Tensor
    limit: float
    lower: float
    upper: float
    groups: tuple[GroupBounds, ...] = ()
    blocks: tuple[GroupBlocks, ...] = ()

    @cached_property
    def total_cost(self) -> float:
        """Cost of all free units."""
        return float(self.costs.sum())


def build_constraints(
    space: UnitLayout,
    keep_ratio: float,
    scope: BudgetScope,
    protected_layers: Sequence[int],
    lower: float,
    upper: float,
    layer_keep_ratios: tuple[float, float] = ANY_RATIO,
    multiples: Mapping[UnitKind, int] | None = None,
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
        bounds = _probability_bounds(name, lower, upper, limit / free_cost)
        constraint = Constraint(name, units, costs_U[units], limit, *bounds)
        if tuple(layer_keep_ratios) != ANY_RATIO:
            share = (keep_ratio * float(total_costs.sum()) - pinned_cost) / free_cost
            constraint = _with_bounds(constraint, free, layer_keep_ratios, share)
        constraints.append(_with_blocks(constraint, free, multiples or {}))
    if not constraints and keep_ratio < 1:
        raise UserError(
            f"Every layer is protected, and a keep ratio of {keep_ratio} leaves none to prune. "
            "Protect fewer layers."
        )
    return tuple(constraints)


def scope_costs(space: UnitLayout, scope: BudgetScope) -> Tensor:
    """Cost of each unit in a budget, (U,) float64: its parameters, or 1."""
    costs_U = space.unit_costs_U
    return costs_U if scope == "parameters" else torch.ones_like(costs_U)


def layer_indices(layers: Sequence[int], num_layers: int) -> set[int]:
    """The indices of layers; negative ones count from the end.

    Raises:
        UserError: A layer does not exist.
    """
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise UserError(
                f"Protected layer {layer} does not exist: the model has layers 0 to "
                f"{num_layers - 1}, or -{num_layers} to -1 from the end."
            )
    return {layer % num_layers for layer in layers}


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
    # With slack, 0.58 of 100 is 58 although the product is 57.99999999999999.
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


def _probability_bounds(name: str, lower: float, upper: float, share: float) -> tuple[float, float]:
    """Check the bounds against the share of the free units that may be kept."""
    if lower > share * (1 + _SLACK):
        raise UserError(
            f"With every probability at the lower bound {lower} the budget '{name}' is exceeded. "
            f"Give a lower bound of at most {_rounded_down(share)}."
        )
    return lower, upper if upper >= share else 1.0


# Bounds of layers.


def _with_bounds(
    constraint: Constraint, free: Sequence[UnitGroup], ratios: tuple[float, float], share: float
) -> Constraint:
    """Add the bounds of the free groups, if those of the probabilities leave room for them."""
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
            f"Give a lower bound of at most {_rounded_down(ratio)}."
        )
    too_high = any(upper * group.count < group.least for group in groups)
    if too_high or most < constraint.limit * (1 - _SLACK):
        upper = 1.0
    return replace(constraint, upper=upper, groups=groups)


def bound_groups(
    name: str,
    counts: Sequence[int],
    costs: Sequence[float],
    ratios: tuple[float, float],
    *,
    limit: float,
    share: float,
) -> tuple[GroupBounds, ...]:
    """Round keep ratios to whole units of each group, so that some mask meets them.

    The minimum is rounded up and the maximum down. Where no whole number lies between them, both
    neighbours are allowed: 4 and 5 of 6 units at [0.7, 0.7]. Where the rounded minima together
    exceed the budget, or the maxima fall short of it, each gives way to its group's share of the
    budget, rounded.

    Args:
        name: Name of the budget, for messages.
        counts: Number of units of each group, one after another.
        costs: Cost of a unit of each group.
        ratios: Least and greatest keep ratio of a group, from 0 to 1.
        limit: Kept cost of these units that the budget allows.
        share: The same as a share of their whole cost, before it was rounded down.

    Returns:
        The bounds of each group; their costs enclose the limit.

    Raises:
        UserError: The ratios are out of range or exclude the share, or a group has a single unit.
    """
    minimum, maximum = ratios
    share_down, share_up = share * (1 - _SLACK), share * (1 + _SLACK)
    if not 0 <= minimum <= maximum <= 1:
        raise UserError(
            f"layer_keep_ratios: must be [minimum, maximum] with 0 <= minimum <= maximum <= 1, "
            f"given [{minimum}, {maximum}]."
        )
    if min(counts) == 1:
        raise UserError(
            f"layer_keep_ratios: a layer has one unit alone of the budget '{name}', which stays or "
            "goes as a whole and has no ratio. Leave it at [0, 1], or use units.kinds of several "
            "units a layer."
        )
    if not minimum <= share_up or not share_down <= maximum:
        raise UserError(
            f"layer_keep_ratios: [{minimum}, {maximum}] excludes what the layers keep on average "
            f"of the budget '{name}' outside protected layers, which is {share:.2%}. Give a "
            f"minimum of at most {_rounded_down(share_up)} and a maximum of at least "
            f"{_rounded_up(share_down)}, or another keep ratio."
        )
    least = [math.ceil(minimum * count * (1 - _SLACK)) for count in counts]
    most = [math.floor(maximum * count * (1 + _SLACK)) for count in counts]
    least, most = list(map(min, least, most)), list(map(max, least, most))
    if sum(map(mul, costs, least)) > limit:
        least = [min(few, math.floor(share_up * n)) for few, n in zip(least, counts, strict=True)]
    if sum(map(mul, costs, most)) < limit:
        most = [max(many, math.ceil(share_down * n)) for many, n in zip(most, counts, strict=True)]
    ends = list(accumulate(counts))
    return tuple(map(GroupBounds, [0, *ends], ends, least, most))


# Blocks of units.


def unit_multiples(
    round_to: int, tensor_parallel: int, channels_per_unit: int = 1
) -> dict[UnitKind, int]:
    """Compute how many units of each kind a mask keeps or drops together in a layer.

    Args:
        round_to: MLP channels of a layer are a multiple of this.
        tensor_parallel: Devices that share each layer, and so its KV groups and its channels.
        channels_per_unit: MLP channels in a unit.

    Returns:
        The multiples above 1, by kind.

    Raises:
        UserError: A number is not positive.
    """
    for name, number in (("round_to", round_to), ("tensor_parallel", tensor_parallel)):
        if number < 1:
            raise UserError(f"{name}: must be at least 1, which asks for nothing; given {number}.")
    channels = math.lcm(round_to, tensor_parallel)
    multiples: dict[UnitKind, int] = {
        "kv_group": tensor_parallel,
        "mlp_channel": channels // math.gcd(channels, channels_per_unit),
    }
    return {kind: multiple for kind, multiple in multiples.items() if multiple > 1}


def _with_blocks(
    constraint: Constraint, free: Sequence[UnitGroup], multiples: Mapping[UnitKind, int]
) -> Constraint:
    """Add the blocks of the free groups; without multiples and bounds there are none.

    The bounds of a group are rounded inwards to whole blocks. Where no multiple lies between them,
    or the minima together exceed the limit, minima are rounded down.
    """
    sizes = [multiples.get(group.kind, 1) for group in free]
    if max(sizes) == 1 and not constraint.groups:
        return constraint
    for group, size in zip(free, sizes, strict=True):
        if group.count < size:
            raise UserError(
                f"round_to, tensor_parallel: {size} units of {group.kind} stay together, but layer "
                f"{group.layer} has only {group.count}. Give smaller numbers."
            )
    ends = list(accumulate(group.count for group in free))
    starts = [0, *ends[:-1]]
    costs = constraint.costs[starts].tolist()
    bounds = constraint.groups or [GroupBounds(0, g.count, 0, g.count) for g in free]
    most = [part.most // size for part, size in zip(bounds, sizes, strict=True)]
    least = [-(-part.least // size) for part, size in zip(bounds, sizes, strict=True)]
    least = list(map(min, least, most))
    if sum(map(mul, map(mul, least, sizes), costs)) > constraint.limit:
        least = [part.least // size for part, size in zip(bounds, sizes, strict=True)]
    cheapest = min(map(mul, sizes, costs))
    if max(sizes) > 1 and cheapest > constraint.limit:
        raise UserError(
            f"round_to, tensor_parallel: a block of units that stay together costs {cheapest:.0f}, "
            f"and the budget allows {constraint.limit:.0f}. Give smaller numbers, or a larger keep "
            "ratio."
        )
    blocks = tuple(map(GroupBlocks, starts, ends, sizes, costs, least, most))
    return replace(constraint, blocks=blocks)


def _rounded_up(ratio: float) -> float:
    return min(1.0, math.ceil(ratio * 1e4) / 1e4)


def _rounded_down(ratio: float) -> float:
    return math.floor(ratio * 1e4) / 1e4
