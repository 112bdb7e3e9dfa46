"""What a training step learned about the masks that it drew.

Shapes: S samples of this rank, R samples of all ranks, U units, X texts of this rank, N samples of
a text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def _only_this_rank(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class MaskSamples:
    """Masks of one step on one rank, and their losses.

    Args:
        masks_SU: The masks, (S, U) bool, as `GradientEstimator.draw` returned them.
        losses_S: Loss under each mask, (S,) float64, in nats per token.
        keep_probabilities_U: The probabilities that they were drawn from, (U,) float64.
        num_texts: How many texts judged them (X): the first S / X masks the first, and so on; 1
            where every mask reads the whole batch.
        dense_losses_S: Loss of the dense model on the same text, (S,) float64, in nats per token;
            None where the estimator does not need it.
        all_losses_R: The losses of all ranks, (R,) float64; None: `losses_S`, for a single rank.
        of_all_ranks: Joins the rows, (S, ...), that each rank has, to (R, ...), the same on each;
            called equally often on all of them.
    """

    masks_SU: Tensor
    losses_S: Tensor
    keep_probabilities_U: Tensor
    num_texts: int = 1
    dense_losses_S: Tensor | None = None
    all_losses_R: Tensor | None = None
    of_all_ranks: Callable[[Tensor], Tensor] = _only_this_rank

    def __post_init__(self) -> None:
        assert self.masks_SU.dtype == torch.bool, self.masks_SU.dtype
        assert self.masks_SU.shape == (len(self.losses_S), len(self.keep_probabilities_U))
        assert len(self.losses_S) % self.num_texts == 0, (self.losses_S.shape, self.num_texts)

    @property
    def losses_R(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """The losses of all ranks, (R,) float64, in nats per token."""
        losses = self.losses_S if self.all_losses_R is None else self.all_losses_R
        return losses.detach().double()

    @property
    def masks_per_text(self) -> int:
        """How many masks of this rank each text judged (N)."""
        return len(self.losses_S) // self.num_texts

    def by_text(self, values_S: Tensor) -> Tensor:
        """A value of each mask, (S,), as one row a text, (X, N)."""
        return values_S.view(-1, self.masks_per_text)

    def with_losses(self, losses_S: Tensor) -> MaskSamples:
        """The same masks with other losses, (S,) float64, on every rank."""
        everyone = None if self.all_losses_R is None else self.of_all_ranks(losses_S)
        return replace(self, losses_S=losses_S, all_losses_R=everyone)

    def among_ranks(self, of_all_ranks: Callable[[Tensor], Tensor]) -> MaskSamples:
        """The same samples, with the losses of the other ranks beside them."""
        return replace(self, all_losses_R=of_all_ranks(self.losses_S), of_all_ranks=of_all_ranks)
