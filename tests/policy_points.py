"""What the tests of budgets and bounds project: random points, under each scope of a budget."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from pgprune_lightning.policy import BudgetScope

SCOPES = get_args(BudgetScope)


def random_points(count: int, size: int = 22, scale: float = 1.0) -> Tensor:
    """Points, (count, size), float64, normally distributed with this standard deviation."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) * scale
