"""Measuring a pruned model: perplexity of the first test text at several block lengths.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pgprune_lightning.data.data_module import TokenBlocksDataModule
from pgprune_lightning.data.token_blocks import TokenBlocks, build_token_blocks
from pgprune_lightning.evaluation import evaluate_perplexity


def measure_perplexities(
    token_nll: Callable[[Tensor], Tensor],
    data: TokenBlocksDataModule,
    lengths: Sequence[int],
    num_blocks: int | None,
    device: torch.device,
) -> dict[str, float | None]:
    """Perplexity at each length.

    Args:
        token_nll: Maps token ids, (B, T), to nats per scored token, (B, T - 1).
        data: Whose first test text is read.
        lengths: Block lengths, in tokens.
        num_blocks: Blocks of each length at most; None: all that the text gives.
        device: Where the model is.

    Returns:
        `perplexity_LENGTH`; None where it overflows.
    """
    result = {}
    for length in lengths:
        blocks = _blocks(data, length, num_blocks)
        # As many tokens a batch at every length, which decide the memory.
        tokens = data.evaluation_batch_size * data.evaluation_block_length
        loader = DataLoader(blocks, batch_size=max(1, tokens // length))
        perplexity = evaluate_perplexity(token_nll, loader, device=device)
        result[f"perplexity_{length}"] = perplexity if math.isfinite(perplexity) else None
    return result


def _blocks(data: TokenBlocksDataModule, length: int, num_blocks: int | None) -> TokenBlocks:
    source = data.test[0]
    return build_token_blocks(
        source if num_blocks is None else replace(source, num_blocks=num_blocks),
        data.load_tokenizer(),
        length,
        bos_per_block=data.bos_per_block,
        cache_dir=data.cache_dir,
    )
