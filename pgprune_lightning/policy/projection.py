"""Exact Euclidean projections onto a budget: within a box, and within bounds of groups.

Shapes: N units of one budget, n of one group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.budget import GroupBounds


def project_onto_budget(
    z_N: Tensor,
    budget: float,
    *,
    costs_N: Tensor | None = None,
    lower: float | Tensor = 0.0,
    upper: float | Tensor = 1.0,
    fill: bool = False,
) -> Tensor:
    """Find the nearest point that keeps at most, or exactly, the budget.

    The solution is `clip(z - v * costs, lower, upper)` for one multiplier `v`. The kept cost
    decreases with `v`, linearly between the breakpoints where a unit leaves `upper` or meets
    `lower`. A search among the breakpoints finds the piece that crosses the budget; on it `v` has a
    closed form.

    Args:
        z_N: The point to project, (N,) with N >= 1, finite.
        budget: Kept cost that is allowed, in the unit of the costs.
        costs_N: Cost of each unit, (N,), positive; None: each unit costs 1.
        lower: Least value of each coordinate, a number or (N,).
        upper: Greatest value of each coordinate, a number or (N,), not below `lower`.
        fill: Keep exactly the budget, not only at most.

    Returns:
        The projection, (N,), in the dtype of `z_N`; computed in float64.

    Raises:
        UserError: `z_N` is not finite, a cost is not positive, or no point meets the budget.

    Source: eqs. A1 and A2; Wang and Carreira-Perpinan (2013); the search by medians, Kiwiel (2008).
    Differs: exact, where the paper bisects; costs, bounds and `fill` are not in the paper.
    """
    z = z_N.detach().double()
    costs = torch.ones_like(z) if costs_N is None else costs_N.to(z)
    low, high = (
        bound.to(z) if isinstance(bound, Tensor) else z.new_full((), bound)
        for bound in (lower, upper)
    )
    _check(z, costs, low, high, budget, fill=fill)
    clipped = z.clamp(low, high)
    if not fill and float(costs @ clipped) <= budget:
        return clipped.to(z_N)
    return _Line(z, costs, low, high).point_that_keeps(budget).to(z_N)


class _Line:
    """The points `clip(z - v * costs, lower, upper)` of all multipliers v."""

    def __init__(self, z: Tensor, costs: Tensor, lower: Tensor, upper: Tensor) -> None:
        self.z, self.costs, self.lower, self.upper = z, costs, lower, upper
        self.leaves_upper, self.meets_lower = (z - upper) / costs, (z - lower) / costs

    def point_that_keeps(self, budget: float) -> Tensor:
        """Find the piece that crosses the budget, and go from its start to the crossing."""
        v = self._last_that_keeps(budget)
        s = self._point(v)
        active = self.costs * ((self.leaves_upper <= v) & (s > self.lower))
        slope, excess = active @ active, self.costs @ s - budget
        rest = torch.where(slope > 0, excess / slope, 0.0)
        return (s - active * rest).clamp(self.lower, self.upper)

    def _last_that_keeps(self, budget: float) -> Tensor:
        """The last breakpoint that keeps the budget; each median halves the candidates."""
        left = torch.cat([self.leaves_upper, self.meets_lower])
        last = left.min()
        while len(left):
            v = left.median()
            if float(self.costs @ self._point(v)) >= budget:
                last, left = v, left.masked_select(left > v)
            else:
                left = left.masked_select(left < v)
        return last

    def _point(self, v: Tensor) -> Tensor:
        s = self.costs * v
        # In place: on a CPU, fresh memory for many units costs more than computing with it.
        torch.sub(self.z, s, out=s).clamp_(self.lower, self.upper)
        # Past its breakpoint a unit is at its bound exactly, which rounding of z - v c would miss.
        torch.where(v >= self.meets_lower, self.lower, s, out=s)
        return torch.where(v <= self.leaves_upper, self.upper, s, out=s)


def _check(
    z: Tensor, costs: Tensor, lower: Tensor, upper: Tensor, budget: float, *, fill: bool
) -> None:
    assert z.ndim == 1, z.shape
    assert costs.shape == z.shape, (costs.shape, z.shape)
    if not bool(z.isfinite().all()):
        raise UserError(
            f"{int((~z.isfinite()).sum())} of {len(z)} values to project are not finite. "
            "Lower the step size, or look for a loss that is not finite."
        )
    if not bool((costs > 0).all() & costs.isfinite().all()):
        raise UserError("Every cost of a budget must be a positive finite number.")
    if bool((lower > upper).any()):
        raise UserError("A lower bound lies above its upper bound.")
    least, most = float((costs * lower).sum()), float((costs * upper).sum())
    # Relative to the sums: they are rounded even where the two bounds are equal.
    slack = 1e-12 * max(abs(least), abs(most))
    if not least - slack <= budget or (fill and budget > most + slack):
        raise UserError(
            f"A budget of {budget:g} cannot be met: the bounds of the probabilities allow a kept "
            f"cost from {least:g} to {most:g}. Change the keep ratio or the bounds."
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
    """Find the nearest point within the budget whose every group sums to an allowed total.

    With a multiplier v of the budget and one w of each group, the solution is
    `clip(z - v c - w, lower, upper)`, where c is constant within a group. For a given v, w moves a
    group only if its sum is out of bounds, and then exactly onto the nearer bound. So `v c + w` is
    `v c` clipped to the shifts of the greatest and the least sum, and the units' values at these
    two shifts, as bounds of each unit, are equivalent to the bounds of the group. Only groups that
    the solution without them violates need them.

    Args:
        z_N: The point to project, (N,), finite.
        budget: Kept cost that is allowed; the groups' bounds enclose it.
        groups: Bounds of each group, which together hold all units, or none at all. Costs are equal
            within a group.
        costs_N: Cost of each unit, (N,), positive.
        lower: Least value of each coordinate; every `most` can be met above it.
        upper: Greatest value of each coordinate; every `least` can be met below it.
        fill: Keep exactly the budget, not only at most.

    Returns:
        The projection, (N,), in the dtype of `z_N`; computed in float64.

    Raises:
        UserError: `z_N` is not finite.

    Differs: not in the paper.
    """
    if not groups:
        return project_onto_budget(
            z_N, budget, costs_N=costs_N, lower=lower, upper=upper, fill=fill
        )
    z = z_N.detach().double()
    costs = costs_N.to(z)
    lowest, highest = torch.full_like(z, lower), torch.full_like(z, upper)
    unbound = list(groups)
    while True:
        s = project_onto_budget(z, budget, costs_N=costs, lower=lowest, upper=highest, fill=fill)
        # All sums in one transfer: a GPU would wait for each.
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
    """The nearest point with this sum, or with the nearest sum that the box allows."""
    total = min(max(total, lower * len(z_n)), upper * len(z_n))
    return project_onto_budget(z_n, total, lower=lower, upper=upper, fill=True)
