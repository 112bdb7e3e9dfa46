"""Hard gates whose gradient is passed on as if they were the probabilities.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
from typing import Literal

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet
from research.backpropagation.gate_draw import GateDraw


class StraightThrough(GateDraw):
    """Runs a hard mask forward and takes its gradient for that of the keep-probabilities.

    Args:
        mask: Which mask is run: the one of the `budget`, as it would be returned now (the top of
            the probabilities), or a Bernoulli `sample` of them.

    Source: Bengio, Leonard and Courville 2013, Sect. 4 (`sample`).
    Differs: `budget` is deterministic; nothing of the loss is lost on masks that no one will use.
    """

    def __init__(self, mask: Literal["budget", "sample"] = "budget") -> None:
        self.mask = mask

    def draw(
        self, keep_probabilities_U: Tensor, feasible_set: FeasibleSet, generator: torch.Generator
    ) -> Tensor:
        """Draw hard gates; see `GateDraw.draw`. The gradient of each by its probability is 1."""
        s_U = keep_probabilities_U.detach()
        if self.mask == "budget":
            hard_U = feasible_set.deterministic_mask(s_U)
        else:
            uniform_U = torch.rand(
                s_U.shape, generator=generator, dtype=s_U.dtype, device=s_U.device
            )
            hard_U = uniform_U < s_U
        return hard_U + (keep_probabilities_U - s_U)

    def check_mask_samples(self, num_mask_samples: int) -> None:
        """Refuse to run one deterministic mask several times.

        Args:
            num_mask_samples: Draws on a rank in a step (N_s).

        Raises:
            UserError: The mask is the budget's, and there is more than one draw.
        """
        if self.mask == "budget" and num_mask_samples > 1:
            raise UserError(
                f"num_mask_samples: the budget's mask is the same in all {num_mask_samples} draws "
                "of a step; give 1, or gates with mask: sample."
            )
