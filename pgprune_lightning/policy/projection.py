"""The exact Euclidean projection onto a budget within a box.

Shapes: U units.
"""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import host_reads

_ROUNDS = 8
"""Of Newton's method; of a training step's values at most 7 were needed in thousands of tries."""

_CLOSE, _EQUAL = 1e-12, 1e-14
"""How far a kept cost is from a budget, relative to it, that Newton's method need not go on from,
and that is rounding."""


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
    `lower`: a search finds the piece that crosses the budget, and there `v` has a closed form.

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

    Source: eqs. A1 and A2; Wang and Carreira-Perpinan (2013).
    Differs: exact where the paper bisects; costs, bounds and `fill` besides.
    """
    z = z_U.detach().double()
    costs = torch.ones_like(z) if costs_U is None else costs_U.to(z)
    problem = _Problem(z, costs, *_as_tensors(lower, upper, z))
    _check(problem, budget, fill=fill)
    s, is_exact = problem.solve(budget, fill=fill)
    if not bool(is_exact):
        s = problem.solve_by_sorting(budget, fill=fill)
    return s.to(z_U)


def try_projection(
    z_U: Tensor, budget: float, costs_U: Tensor, lower: float, upper: float, *, fill: bool
) -> tuple[Tensor, Tensor]:
    """Project without checks, by operations whose results the host does not read.

    Args:
        z_U: The point to project, (U,) float64.
        budget: Kept cost that is allowed, which the bounds allow too.
        costs_U: Cost of each unit, (U,) float64, positive.
        lower: Least value of each coordinate.
        upper: Greatest value of each coordinate.
        fill: Keep exactly the budget.

    Returns:
        A point, (U,) float64, and whether it is the projection, () bool: not where `z_U` is not
        finite, and not where it takes `project_onto_budget` more than a few rounds.
    """
    return _Problem(z_U, costs_U, *_as_tensors(lower, upper, z_U)).solve(budget, fill=fill)


def _as_tensors(lower: float | Tensor, upper: float | Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds as tensors beside z; a number is filled in there and not copied, which waits."""
    low, high = (
        bound.to(z) if isinstance(bound, Tensor) else z.new_full((), bound)
        for bound in (lower, upper)
    )
    return low, high


class _Problem:
    """The points `clip(z - v * costs, lower, upper)` of all multipliers v.

    Its steps write over what they made before: on a CPU fresh memory for hundreds of thousands of
    units costs more than computing with it.
    """

    def __init__(self, z: Tensor, costs: Tensor, lower: Tensor, upper: Tensor) -> None:
        self.z, self.costs, self.lower, self.upper = z, costs, lower, upper
        self.leaves_upper, self.meets_lower = (z - upper).div_(costs), (z - lower).div_(costs)
        # Neither is finite where z is not.
        self.first, self.last = self.leaves_upper.min(), self.meets_lower.max()

    def solve(self, budget: float, *, fill: bool) -> tuple[Tensor, Tensor]:
        """The projection, and whether it is; no result is read unless that costs nothing.

        A few rounds of Newton's method between brackets find the piece that crosses the budget,
        unless the values are of very different magnitude. The result is, to the last digit, that of
        the search among sorted breakpoints.
        """
        is_finite = self.first.isfinite() & self.last.isfinite()
        if not fill:
            clipped = self.z.clamp(self.lower, self.upper)
            is_slack = self.costs @ clipped <= budget
            if host_reads.reading_is_free(self.z.device) and bool(is_slack):
                return clipped, is_finite
        before, after = self._neighbours(self._newton(budget))
        kept_after = self._kept(after)
        # Where the budget is met just at a breakpoint, rounding decides on which side of it v lies.
        s, kept = self._finish(torch.where(kept_after >= budget, after, before), budget)
        is_met = ((kept >= budget) & (kept_after < budget)) | _is_within(_EQUAL, kept, budget)
        if not fill:
            s, is_met = torch.where(is_slack, clipped, s), is_met | is_slack
        return s, is_met & is_finite

    def solve_by_sorting(self, budget: float, *, fill: bool) -> Tensor:
        """The projection, whatever the values are; the host reads at some 20 breakpoints."""
        clipped = self.z.clamp(self.lower, self.upper)
        if not fill and float(self.costs @ clipped) <= budget:
            return clipped
        breakpoints = torch.cat([self.leaves_upper, self.meets_lower]).sort().values
        last_above = bisect_right(
            range(len(breakpoints)), -budget, key=lambda k: -float(self._kept(breakpoints[k]))
        )
        return self._finish(breakpoints[max(last_above - 1, 0)], budget)[0]

    def _point(self, v: Tensor) -> Tensor:
        s = self.costs * v
        torch.sub(self.z, s, out=s).clamp_(self.lower, self.upper)
        # Past its breakpoint a unit is at its bound exactly, which rounding of z - v c would miss.
        torch.where(v >= self.meets_lower, self.lower, s, out=s)
        return torch.where(v <= self.leaves_upper, self.upper, s, out=s)

    def _kept(self, v: Tensor) -> Tensor:
        """The kept cost, which falls with v."""
        return self.costs @ self._point(v)

    def _newton(self, budget: float) -> Tensor:
        """A multiplier in the piece that crosses the budget, if `_ROUNDS` are enough."""
        squares = self.costs * self.costs
        s, inside = torch.empty_like(self.z), torch.empty_like(self.z)
        # Beyond the outermost breakpoints, so that these lie between the brackets.
        low, high = self.first - 1 - self.first.abs(), self.last + 1 + self.last.abs()
        v = torch.zeros_like(low).clamp(low, high)
        for _ in range(_ROUNDS):
            torch.addcmul(self.z, self.costs, v, value=-1, out=s).clamp_(self.lower, self.upper)
            kept = self.costs @ s
            is_above = kept >= budget
            low, high = torch.where(is_above, v, low), torch.where(is_above, high, v)
            slope = squares @ inside.copy_((s > self.lower) & (s < self.upper))
            is_done = _is_within(_CLOSE, kept, budget)
            stepped = torch.where(is_done & ~(slope > 0), v, v + (kept - budget) / slope)
            # Of a flat piece the step is not finite, and not between the brackets either.
            is_good = is_done | ((stepped > low) & (stepped < high))
            v = torch.where(is_good, stepped, (low + high) / 2)
            if host_reads.reading_is_free(s.device) and bool(is_done):
                break
        return v

    def _neighbours(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The last breakpoint up to v and the first after it, () each."""
        infinity, chosen = self.z.new_full((), float("inf")), torch.empty_like(self.z)
        before, after = [], []
        for breakpoints in (self.leaves_upper, self.meets_lower):
            is_before = breakpoints <= v
            before.append(torch.where(is_before, breakpoints, -infinity, out=chosen).max())
            after.append(torch.where(is_before, infinity, breakpoints, out=chosen).min())
        return torch.maximum(*before), torch.minimum(*after)

    def _finish(self, v: Tensor, budget: float) -> tuple[Tensor, Tensor]:
        """Go on from a breakpoint to where the budget is met; and the kept cost at that point."""
        s = self._point(v)
        active = self.costs * ((self.leaves_upper <= v) & (s > self.lower))
        slope, kept = active @ active, self.costs @ s
        rest = torch.where(slope > 0, (kept - budget) / slope, 0.0)
        return s.sub_(active.mul_(rest)).clamp_(self.lower, self.upper), kept


def _is_within(share: float, kept: Tensor, budget: float) -> Tensor:
    return (kept - budget).abs() <= share * abs(budget)


def _check(problem: _Problem, budget: float, *, fill: bool) -> None:
    z, costs, lower, upper = problem.z, problem.costs, problem.lower, problem.upper
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
