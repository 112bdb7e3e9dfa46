"""Perplexity of a text in overlapping windows: each token is scored once, with a long context.

Shapes: N tokens of the text, W windows, B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgprune_lightning.evaluation.perplexity import TokenPerplexity
from pgprune_lightning.progress import SECONDS_OF_SHORT_WORK, progress_bar


@dataclass(frozen=True)
class Window:
    """A part of a text.

    Args:
        start: Index of its first token.
        end: Index behind its last one.
        scored: How many of its last tokens no earlier window has had.
    """

    start: int
    end: int
    scored: int


def windows(num_tokens: int, width: int, stride: int) -> Iterator[Window]:
    """Windows that begin `stride` tokens apart, the last of them at the text's end.

    Args:
        num_tokens: Tokens of the text, at least 2.
        width: Tokens of a window, at least 2.
        stride: From 1 to `width - 1`.

    Yields:
        Windows whose scored tokens are together the whole text.
    """
    assert 1 <= stride < width, "a window without overlap could not score its first token"
    previous_end = 0
    for start in range(0, num_tokens, stride):
        end = min(start + width, num_tokens)
        yield Window(start, end, end - previous_end)
        if end == num_tokens:
            return
        previous_end = end


def strided_perplexity(
    token_nll: Callable[[Tensor], Tensor],
    stream_N: NDArray[np.int32],
    *,
    length: int,
    stride: int,
    bos: int | None,
    batch_size: int,
    device: torch.device,
    description: str | None = None,
) -> tuple[float, int]:
    """Perplexity of a text with at least `length - stride` tokens before nearly each token.

    Args:
        token_nll: Maps token ids, (B, T), to nats per scored token, (B, T - 1).
        stream_N: The text, without a BOS token where `bos` is given, (N,).
        length: Tokens of a window, BOS included.
        stride: Tokens from the beginning of a window to that of the next, below the text's tokens
            in a window.
        bos: Token that is set before each window; None: none is, and the text's first token is not
            scored.
        batch_size: Windows in one forward pass.
        device: Where the model is.
        description: Text before the progress bar; None for no bar.

    Returns:
        The perplexity, and the number of tokens that were scored.

    Source: Hugging Face, "Perplexity of fixed-length models".
    Differs: Every token is scored once and weighs the same; the example published there counts one
        token less than it scores in each window but the first.
    """
    metric = TokenPerplexity().to(device)
    plan = list(windows(len(stream_N), length - (bos is not None), stride))
    batches = list(_batches(plan, batch_size))
    bar = progress_bar(
        batches,
        desc=description,
        disable=description is None,
        leave=False,
        delay=SECONDS_OF_SHORT_WORK,
    )
    for batch in bar:
        rows_BT = np.stack([stream_N[window.start : window.end] for window in batch])
        if bos is not None:
            rows_BT = np.insert(rows_BT, 0, bos, axis=1)
        nll_BT = token_nll(torch.from_numpy(rows_BT.astype(np.int64)).to(device))
        # The text's first token has no context and no loss unless there is a BOS.
        metric.update(nll_BT[:, -batch[0].scored :])
    return float(metric.compute()), int(metric.num_tokens)


def _batches(plan: list[Window], batch_size: int) -> Iterator[list[Window]]:
    """Windows that have one length and score equally many tokens, in order."""
    for _, alike in groupby(plan, key=lambda window: (window.end - window.start, window.scored)):
        same = list(alike)
        yield from (same[i : i + batch_size] for i in range(0, len(same), batch_size))
