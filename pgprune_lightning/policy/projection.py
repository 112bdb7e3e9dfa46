"""The exact Euclidean projection onto a budget within a box.

Shapes: U units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError


def project_onto_budget(
    z_U: Tensor,
    budget: float,
    *,
    costs_U: Tensor | None = None,
    lower: float | Tensor = 0.0,
    upper: float | Tensor = 1.0,
    fill: bool = False,
) -> Tensor:
    """Find the nearest point that keeps at most, or exactly, the budget.

    The solution is `clip(z - v * costs, lower, upper)` for one multiplier `v`. The kept cost
    falls with `v`, linearly between the breakpoints where a unit leaves `upper` or meets
    `lower`: a search among the breakpoints finds the piece that crosses the budget, and there `v`
    has a closed form.

    Args:
        z_U: The point to project, (U,) with U >= 1, finite.
        budget: Kept cost that is allowed, in the unit of the costs.
        costs_U: Cost of each unit, (U,), positive; None: each unit costs 1.
        lower: Least value of each coordinate, a number or (U,).
        upper: Greatest value of each coordinate, a number or (U,), not below `lower`.
        fill: Keep exactly the budget, and not only at most.

    Returns:
        The projection, (U,), in the dtype of `z_U`; computed in float64.

    Raises:
        UserError: `z_U` is not finite, a cost is not positive, or no point meets the budget.

    Source: eqs. A1 and A2; Wang and Carreira-Perpinan (2013); the search by medians, Kiwiel (2008).
    Differs: exact where the paper bisects; costs, bounds and `fill` besides.
    """
    z = z_U.detach().double()
    costs = torch.ones_like(z) if costs_U is None else costs_U.to(z)
    low, high = (
        bound.to(z) if isinstance(bound, Tensor) else z.new_full((), bound)
        for bound in (lower, upper)
    )
    _check(z, costs, low, high, budget, fill=fill)
    clipped = z.clamp(low, high)
    if not fill and float(costs @ clipped) <= budget:
        return clipped.to(z_U)
    return _Line(z, costs, low, high).point_that_keeps(budget).to(z_U)


class _Line:
    """The points `clip(z - v * costs, lower, upper)` of all multipliers v."""

    def __init__(self, z: Tensor, costs: Tensor, lower: Tensor, upper: Tensor) -> None:
        self.z, self.costs, self.lower, self.upper = z, costs, lower, upper
        self.leaves_upper, self.meets_lower = (z - upper) / costs, (z - lower) / costs

    def point_that_keeps(self, budget: float) -> Tensor:
        """Find the piece that crosses the budget, and go on from its start to where it is met."""
        v = self._last_that_keeps(budget)
        s = self._point(v)
        active = self.costs * ((self.leaves_upper <= v) & (s > self.lower))
        slope, excess = active @ active, self.costs @ s - budget
        rest = torch.where(slope > 0, excess / slope, 0.0)
        return (s - active * rest).clamp(self.lower, self.upper)

    def _last_that_keeps(self, budget: float) -> Tensor:
        """The last breakpoint that keeps the budget; each look at a median halves those left."""
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
    # Of the sums themselves: they are rounded even where the bounds leave nothing between them.
    slack = 1e-12 * max(abs(least), abs(most))
    if not least - slack <= budget or (fill and budget > most + slack):
        raise UserError(
            f"A budget of {budget:g} cannot be met: the bounds of the probabilities allow a kept "
            f"cost from {least:g} to {most:g}. Change the keep ratio or the bounds."
        )
