"""Random importance: the initialisation that needs no prior knowledge (paper, Sect. 5.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.initialization.metric import MetricInputs


def random_metric(inputs: MetricInputs) -> Tensor:
    """Draw every unit's importance from a standard normal distribution.

    Args:
        inputs: Only the unit layout and the seed are looked at.

    Returns:
        Importance, (U,), float64.
    """
    generator = torch.Generator().manual_seed(inputs.seed)
    return torch.randn(inputs.space.num_units, generator=generator, dtype=torch.float64)
