"""What every way to draw differentiable gates from keep-probabilities has in common.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pgprune_lightning.policy import FeasibleSet


class GateDraw(ABC):
    """Draws gates from keep-probabilities, so that a gradient finds its way back to them."""

    @abstractmethod
    def draw(
        self, keep_probabilities_U: Tensor, feasible_set: FeasibleSet, generator: torch.Generator
    ) -> Tensor:
        """Draw one gate for each unit.

        Args:
            keep_probabilities_U: The probabilities s, (U,) float64, feasible, requiring a gradient.
            feasible_set: The budget.
            generator: Source of the randomness, on the device of the probabilities.

        Returns:
            Gates, (U,) float64, from 0 to 1, differentiable in s. Where s is exactly 0 or 1 the
            gate is s.
        """

    def check_mask_samples(self, num_mask_samples: int) -> None:
        """Refuse a number of draws a step that makes no sense.

        Args:
            num_mask_samples: Draws on a rank in a step (N_s).

        Raises:
            UserError: If it does not.
        """
        del num_mask_samples
