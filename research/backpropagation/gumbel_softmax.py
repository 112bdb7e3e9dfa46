"""Relaxed Bernoulli gates: samples that lie between 0 and 1 and are smooth in their probabilities.

Shapes: U units.
"""

# No `from __future__ import annotations`: the command line reads these types.
import math

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet
from research.backpropagation.gate_draw import GateDraw


class GumbelSoftmax(GateDraw):
    """Draws each gate from the binary concrete distribution, Gumbel-softmax over keep and drop.

    Args:
        temperature: Of the relaxation, above 0: near 0 gates are nearly 0 or 1 and their gradients
            vary wildly; large ones lie near one half, which no mask does.

    Raises:
        UserError: The temperature is not positive and finite.

    Source: Maddison et al. 2017, eq. 16 and appendix B (2/3 is theirs); Jang et al. 2017.
    """

    def __init__(self, temperature: float = 2 / 3) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"gates.temperature: must be above 0 and finite, given {temperature}.")
        self.temperature = temperature

    def draw(
        self, keep_probabilities_U: Tensor, feasible_set: FeasibleSet, generator: torch.Generator
    ) -> Tensor:
        """Draw relaxed gates; see `GateDraw.draw`."""
        del feasible_set
        s_U = keep_probabilities_U
        uniform_U = torch.rand(s_U.shape, generator=generator, dtype=s_U.dtype, device=s_U.device)
        noise_U = uniform_U.clamp_min(torch.finfo(s_U.dtype).tiny).logit()
        is_open_U = (s_U > 0) & (s_U < 1)
        # An infinite logit would make the gradient of certain units 0 times infinity.
        logits_U = torch.where(is_open_U, s_U, 0.5).logit()
        gates_U = ((logits_U + noise_U) / self.temperature).sigmoid()
        return torch.where(is_open_U, gates_U, s_U.detach())
