"""Least and greatest keep ratios of each layer and kind, beside the budget.

Shapes: N free units of one budget, among them n of one group: the units of one kind in one layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.projection import project_onto_budget

ANY_RATIO = (0.0, 1.0)
"""Bounds that allow everything."""

_SLACK = 1e-12  # of the rounding of a ratio times a number of units


@dataclass(frozen=True)
class GroupBounds:
    """How many units of one layer and kind may stay, in masks and in expectation.

    Args:
        start: Place of the group's first unit among those of its budget.
        end: Place after its last.
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

    def holds(self, values_N: Tensor, slack: float = 0.0) -> bool:
        """Whether the group's part of a mask or of probabilities, (N,), sums to what it may."""
        return self.allows(float(values_N[self.start : self.end].sum()), slack)

    def allows(self, total: float, slack: float = 0.0) -> bool:
        """Whether the group may sum to a total."""
        return self.least - slack <= total <= self.most + slack


def bound_groups(
    name: str,
    counts: Sequence[int],
    costs: Sequence[float],
    ratios: tuple[float, float],
    *,
    limit: float,
    share: float,
) -> tuple[GroupBounds, ...]:
    """Round keep ratios to whole units of each group, and never so that no mask is left.

    The minimum is rounded up and the maximum down. Where no whole number lies between them, both
    its neighbours are allowed: 4 and 5 of 6 units at [0.7, 0.7]. Where all minima together exceed
    the budget so, or all maxima fall short of it, they give way as far as each group's own share of
    the budget, rounded. So if the ratios enclose the budget's share, some mask meets everything.

    Args:
        name: Of the budget, for messages.
        counts: Number of units of each group, one after another.
        costs: Cost of a unit of each group.
        ratios: Least and greatest keep ratio of a group, from 0 to 1.
        limit: Kept cost that the budget allows these units.
        share: The same as a share of their whole cost, before it was rounded down.

    Returns:
        The bounds, a group each; their costs enclose the limit.

    Raises:
        UserError: The ratios are out of range or exclude the share, or a group has one unit alone.
    """
    minimum, maximum = ratios
    share_down, share_up = share * (1 - _SLACK), share * (1 + _SLACK)
    _check_ratios(name, counts, minimum, maximum)
    if not minimum <= share_up or not share_down <= maximum:
        raise UserError(
            f"layer_keep_ratios: [{minimum}, {maximum}] excludes what the layers keep on average "
            f"of the budget '{name}' outside protected layers, which is {share:.2%}. Give a "
            f"minimum of at most {math.floor(share_up * 1e4) / 1e4} and a maximum of at least "
            f"{math.ceil(share_down * 1e4) / 1e4}, or another keep ratio."
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


def _check_ratios(name: str, counts: Sequence[int], minimum: float, maximum: float) -> None:
    if not 0 <= minimum <= maximum <= 1:
        raise UserError(
            f"layer_keep_ratios: must be [minimum, maximum] with 0 <= minimum <= maximum <= 1, "
            f"given [{minimum}, {maximum}]."
        )
    if min(counts) == 1:
        raise UserError(
            f"layer_keep_ratios: a layer has one unit alone of the budget '{name}', which stays or "
            "goes as a whole and has no ratio. Leave it at [0, 1], or use unit_kinds of several "
            "units a layer."
        )


def project_within_groups(
    z_N: Tensor,
    budget: float,
    groups: Sequence[GroupBounds],
    *,
    costs_N: Tensor,
    lower: float,
    upper: float,
    fill: bool,
) -> Tensor:
    """Find the nearest point within the budget whose every group sums to what it may.

    With a multiplier v of the budget and one w of each group, the solution is
    `clip(z - v c - w, lower, upper)`, where c is the same within a group. For a given v, w moves a
    group only if its sum is out of bounds, and then just onto the nearer one. So `v c + w` is
    `v c`, clipped to the two shifts at which the sum is the greatest and the least; and the units'
    values at these two shifts, as bounds of each unit alone, are equivalent to the group's. A group
    that meets its bounds without them needs none: the nearest point of a larger set is the
    nearest, if it lies in the smaller one.

    Args:
        z_N: The point to project, (N,), finite.
        budget: Kept cost that is allowed, which the groups' bounds enclose.
        groups: Bounds of each group, which together hold all units; costs are equal within one.
        costs_N: Cost of each unit, (N,), positive.
        lower: Least value of each coordinate, which allows every `most`.
        upper: Greatest value of each coordinate, which allows every `least`.
        fill: Keep exactly the budget, and not only at most.

    Returns:
        The projection, (N,), in the dtype of `z_N`; computed in float64.

    Raises:
        UserError: `z_N` is not finite.

    Differs: not in the paper.
    """
    z = z_N.detach().double()
    costs = costs_N.to(z)
    lowest, highest = torch.full_like(z, lower), torch.full_like(z, upper)
    unbound = list(groups)
    while True:
        s = project_onto_budget(z, budget, costs_U=costs, lower=lowest, upper=highest, fill=fill)
        # All sums in one transfer instead of a wait for every group.
        totals = torch.stack([s[group.start : group.end].sum() for group in groups]).tolist()
        pairs = zip(groups, totals, strict=True)
        crossed = [group for group, total in pairs if group in unbound and not group.allows(total)]
        if not crossed:
            return s.to(z_N)
        for group in crossed:
            units = slice(group.start, group.end)
            highest[units] = _with_sum(z[units], group.most, lower, upper)
            lowest[units] = _with_sum(z[units], group.least, lower, upper)
        unbound = [group for group in unbound if group not in crossed]


def _with_sum(z_n: Tensor, total: float, lower: float, upper: float) -> Tensor:
    """The nearest point of this sum, or of the nearest that the box allows."""
    total = min(max(total, lower * len(z_n)), upper * len(z_n))
    return project_onto_budget(z_n, total, lower=lower, upper=upper, fill=True)


def forced_and_allowed(ranked_N: Tensor, groups: Sequence[GroupBounds]) -> tuple[Tensor, Tensor]:
    """Say which units of a ranking every mask keeps, and which it may keep.

    Args:
        ranked_N: Places of a budget's units, the best first, (N,) int64.
        groups: Bounds of each group.

    Returns:
        In the order of the ranking, (N,) bool each: the first `least` units of every group, and the
        first `most`.
    """
    forced_N = torch.zeros_like(ranked_N, dtype=torch.bool)
    allowed_N = torch.ones_like(forced_N)
    for group in groups:
        inside_N = (ranked_N >= group.start) & (ranked_N < group.end)
        position_N = inside_N.cumsum(0)
        forced_N |= inside_N & (position_N <= group.least)
        allowed_N &= ~inside_N | (position_N <= group.most)
    return forced_N, allowed_N
