"""The most probable units that a budget holds.

Shapes: N units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SORTED_AT_ONCE = 2**12
"""Units that are sorted as they are; of more, those near the last that fits are looked for."""
_MOST_HALVINGS = 64
"""Of a bracket. What is left in it after so many is sorted, however much that is."""


def most_probable(s_N: Tensor, costs_N: Tensor, limit: float) -> Tensor:
    """Go down from the most probable unit, and keep every one that still fits.

    Equal probabilities rank by index. Of many units only those near the one that fits no more are
    sorted.

    Args:
        s_N: What ranks the units, (N,).
        costs_N: Their costs, (N,) float64, positive.
        limit: Cost of all that are kept, at most.

    Returns:
        Which units are kept, (N,) bool.
    """
    kept_N = torch.zeros_like(s_N, dtype=torch.bool)
    if len(s_N) <= SORTED_AT_ONCE:
        ranked = s_N.argsort(descending=True, stable=True)
        kept_N[ranked] = fitting(costs_N[ranked], limit)
        return kept_N
    open_N = torch.ones_like(kept_N)
    while bool(open_N.any()):
        low, high = _bracket(s_N, costs_N * open_N, limit)
        above_N = open_N & (s_N > high)
        kept_N |= above_N
        limit -= _cost(above_N, costs_N)
        further_down_N = open_N & (s_N <= low)
        near = (open_N & ~above_N & ~further_down_N).nonzero().flatten()
        ranked = near[s_N[near].argsort(descending=True, stable=True)]
        kept = ranked[fitting(costs_N[ranked], limit)]
        kept_N[kept] = True
        limit -= float(costs_N[kept].sum())
        # Of those, what costs less than the ones that did not fit may do so.
        open_N = further_down_N & (costs_N <= limit)
    return kept_N


def fitting(costs_N: Tensor, limit: float) -> Tensor:
    """Go down a ranking and keep every unit that still fits.

    Each round keeps the longest run that fits; the unit after it fits no more, nor does any that
    costs as much. So there are at most as many rounds as different costs.

    Args:
        costs_N: Costs of the units, the first first, (N,) float64.
        limit: Cost of all that are kept, at most.

    Returns:
        Which of them are kept, (N,) bool.
    """
    kept_N = torch.zeros_like(costs_N, dtype=torch.bool)
    candidates = torch.arange(len(costs_N), device=costs_N.device)
    left = limit
    while len(candidates):
        spent = costs_N[candidates].cumsum(0)
        run = int((spent <= left).sum())
        kept_N[candidates[:run]] = True
        left -= float(spent[run - 1]) if run else 0.0
        candidates = candidates[run:]
        candidates = candidates[costs_N[candidates] <= left]
    return kept_N


def _bracket(s_N: Tensor, costs_N: Tensor, limit: float) -> tuple[float, float]:
    """Two values with few units between them, so that only these have to be sorted.

    All units above the higher one fit together, all above the lower do not; NaN is below every
    unit. A unit that costs nothing is not counted.
    """
    counted_N = costs_N > 0
    between = int(counted_N.sum())
    least, high = (float(value) for value in s_N.aminmax())
    is_finite = math.isfinite(least) and math.isfinite(high)
    if between <= SORTED_AT_ONCE or not is_finite or float(costs_N.sum()) <= limit:
        return math.nan, math.inf
    low, below, above_high = math.nan, least, 0
    for _ in range(_MOST_HALVINGS):
        middle = (below + high) / 2
        above_N = s_N > middle
        above = int((above_N & counted_N).sum())
        if _cost(above_N, costs_N) <= limit:
            high, between, above_high = middle, between + above_high - above, above
        else:
            low, below, between = middle, middle, above - above_high
        if between <= SORTED_AT_ONCE:
            break
    return low, high


def _cost(which_N: Tensor, costs_N: Tensor) -> float:
    return float(which_N.to(costs_N) @ costs_N)
