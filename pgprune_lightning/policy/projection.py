"""The exact Euclidean projection onto a budget within a box.

Shapes: U units.
"""

from __future__ import annotations

from bisect import bisect_right

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
    `lower`: a search among the sorted breakpoints finds the piece that crosses the budget, and
    there `v` has a closed form.

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
    lowest = torch.as_tensor(lower, dtype=z.dtype, device=z.device)
    highest = torch.as_tensor(upper, dtype=z.dtype, device=z.device)
    _check(z, budget, costs, lowest, highest, fill=fill)

    clipped = z.clamp(lowest, highest)
    if not fill and float(costs @ clipped) <= budget:
        return clipped.to(z_U)

    leaves_upper, meets_lower = (z - highest) / costs, (z - lowest) / costs

    def point(v: Tensor) -> Tensor:
        # Past its breakpoint a unit is at its bound exactly, which rounding of z - v c would miss.
        s = torch.where(v >= meets_lower, lowest, (z - v * costs).clamp(lowest, highest))
        return torch.where(v <= leaves_upper, highest, s)

    breakpoints = torch.cat([leaves_upper, meets_lower]).sort().values
    last_above = bisect_right(
        range(len(breakpoints)), -budget, key=lambda k: -float(costs @ point(breakpoints[k]))
    )
    v = breakpoints[max(last_above - 1, 0)]
    s = point(v)
    active = costs * ((leaves_upper <= v) & (s > lowest))
    slope = active @ active
    rest = torch.where(slope > 0, (costs @ s - budget) / slope, 0.0)
    return (s - rest * active).clamp(lowest, highest).to(z_U)


def _check(
    z: Tensor, budget: float, costs: Tensor, lower: Tensor, upper: Tensor, *, fill: bool
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
