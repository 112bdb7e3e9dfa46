"""Policy gradient in the space that is explored, from pairs of opposite moves.

Shapes: S samples of this rank, N pairs of them, P moves, U units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pgprune_lightning.policy.estimators.pairs import PairedEstimator
from pgprune_lightning.policy.estimators.samples import MaskSamples


class SymmetricExploration(PairedEstimator):
    """The gradient of the expected loss by the means of Gaussian moves.

    A pair of samples moves by e and by -e, and half the difference of its losses times e is the
    estimate: what both masks and their text share cancels, and no baseline is needed. It is not
    chosen in a configuration: `ExploredLogits` brings it.

    Args:
        num_moves: How many numbers are explored (P).
        masks_of: Makes the masks, (S, U) bool, of moves around the present means, (S, P) float64,
            in standard deviations.

    Source: Sehnke et al. 2010, "Parameter-exploring policy gradients", symmetric sampling.
    Differs: The gradient is by means counted in standard deviations, in nats per token.
    """

    drawn_by = "ExploredLogits"

    def __init__(self, num_moves: int, masks_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.num_moves = num_moves
        self._masks_of = masks_of
        self._moves_NP: Tensor | None = None

    def draw(
        self, keep_probabilities_U: Tensor, num_masks: int, generator: torch.Generator
    ) -> Tensor:
        """Draw pairs of opposite moves and make their masks. See `GradientEstimator.draw`.

        The moves are remembered until `estimate` is called.
        """
        assert num_masks % 2 == 0, num_masks
        moves_NP = torch.randn(
            (num_masks // 2, self.num_moves),
            generator=generator,
            dtype=torch.float64,
            device=keep_probabilities_U.device,
        )
        self._moves_NP = moves_NP
        return self._masks_of(torch.stack([moves_NP, -moves_NP], dim=1).flatten(0, 1))

    def estimate(self, samples: MaskSamples) -> Tensor:
        """Estimate the gradient by the means, (P,) float64. See `GradientEstimator.estimate`."""
        moves_NP, losses_S = self._moves_NP, samples.losses_S.detach().double()
        assert moves_NP is not None, "draw has not been called"
        assert len(losses_S) == 2 * len(moves_NP), (losses_S.shape, moves_NP.shape)
        self._moves_NP = None
        self.baseline.copy_(samples.losses_R.mean())
        self.used_baseline.copy_(losses_S.mean())
        halves_N = (losses_S[0::2] - losses_S[1::2]) / 2
        return halves_N @ moves_NP / len(halves_N)
