"""Points that the tests of budgets project, and whether a point is feasible."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from pgprune_lightning.policy import BudgetScope, FeasibleSet

SCOPES = get_args(BudgetScope)


def random_points(count: int, size: int = 22, scale: float = 1.0) -> Tensor:
    """Points, (count, size), float64, normally distributed with this standard deviation."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) * scale


def is_feasible(feasible_set: FeasibleSet, s_U: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether probabilities, (U,), meet every budget and bound.

    Args:
        feasible_set: Budgets and bounds.
        s_U: The probabilities.
        tolerance: How far a probability may be outside, and a kept cost relative to its limit.
    """
    s_U = s_U.detach().cpu()
    protected_U = torch.ones(len(s_U), dtype=torch.bool)
    for part in feasible_set.constraints:
        s_N = s_U.double()[part.units]
        protected_U[part.units] = False
        inside = (s_N >= part.lower - tolerance) & (s_N <= part.upper + tolerance)
        excess = float(part.costs @ s_N) - part.limit
        excess = abs(excess) if feasible_set.fill else excess
        # "not <=", so that NaN is outside.
        if not inside.all() or not excess <= tolerance * max(1.0, part.limit):
            return False
        for group in part.groups:
            total = float(s_N[group.start : group.end].sum())
            if not group.allows(total, tolerance * group.count):
                return False
    return bool((s_U[protected_U] == 1).all())
