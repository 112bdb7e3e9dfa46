"""Perplexity: exp of the token-weighted mean negative log-likelihood.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from pgprune_lightning.progress import SECONDS_OF_SHORT_WORK, progress_bar


class TokenPerplexity(Metric):
    """Perplexity over all scored tokens of all batches and ranks.

    Sums are kept instead of means, so that batches of different sizes and ranks with different
    numbers of batches weigh by their tokens: a mean of batch means does not.

    Source: Paper, Sect. 4.1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    nll_sum: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll_BT: Tensor) -> None:
        """Add the token losses of a batch.

        Args:
            nll_BT: Nats per scored token, (B, T), float32.
        """
        self.nll_sum += nll_BT.sum(dtype=torch.float64)
        self.num_tokens += nll_BT.numel()

    def compute(self) -> Tensor:
        """Perplexity, a float64 scalar; infinite where the loss is."""
        return (self.nll_sum / self.num_tokens).exp()


def evaluate_perplexity(
    token_nll: Callable[[Tensor], Tensor],
    batches: DataLoader[Tensor],
    *,
    device: torch.device,
    description: str | None = None,
) -> float:
    """Perplexity of a text.

    Args:
        token_nll: Maps token ids, (B, T), to nats per scored token, (B, T - 1).
        batches: This rank's share of the text's blocks.
        device: Where the model is.
        description: Text before the progress bar; None for no bar.

    Returns:
        The perplexity over all ranks' shares.
    """
    metric = TokenPerplexity().to(device)
    bar = progress_bar(
        batches,
        desc=description,
        disable=description is None,
        leave=False,
        delay=SECONDS_OF_SHORT_WORK,
    )
    for batch_BT in bar:
        metric.update(token_nll(batch_BT.to(device)))
    return float(metric.compute())
