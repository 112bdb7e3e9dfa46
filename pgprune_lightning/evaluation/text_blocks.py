"""What is read of a text to measure a model: its blocks, or all of it in one row.

Shapes: N tokens of a text.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.data.token_blocks import TokenBlocks, build_token_blocks


def text_blocks(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    tokens: int | None,
    bos_per_block: bool,
    cache_dir: str | Path | None = None,
) -> TokenBlocks:
    """Read a text in blocks that do not overlap.

    Args:
        source: The text.
        tokenizer: Of the model that will read it.
        length: Tokens in a block, BOS included.
        tokens: Tokens in all blocks, at most, but one block at least; None: as many as the source
            says. Of a text that is tokenised whole the blocks are evenly spaced.
        bos_per_block: Begin every block with the tokenizer's BOS token.
        cache_dir: Folder of the cache; None: see `default_cache_dir`.

    Raises:
        UserError: If the text cannot be read, or is too short for one block.
    """
    return build_token_blocks(
        source if tokens is None else replace(source, num_blocks=max(1, tokens // length)),
        tokenizer,
        length,
        bos_per_block=bos_per_block,
        cache_dir=cache_dir,
    )


def text_stream(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int | None,
    bos_per_block: bool,
    cache_dir: str | Path | None = None,
) -> NDArray[np.int32]:
    """Read a text in one row, for windows that overlap.

    Args:
        source: The text.
        tokenizer: Of the model that will read it.
        tokens: Tokens, the first ones, at most; None: all.
        bos_per_block: The windows will begin with the BOS token, and the text does not.
        cache_dir: Folder of the cache; None: see `default_cache_dir`.

    Returns:
        Token ids, (N,), int32; may be memory-mapped.

    Raises:
        UserError: If the text cannot be read.
    """
    # Of a text that is tokenised whole, a number of blocks would mean evenly spaced ones.
    wanted = tokens if source.join == "end_token" else None
    blocks = build_token_blocks(
        replace(source, num_blocks=wanted),
        tokenizer,
        1 + bos_per_block,
        bos_per_block=bos_per_block,
        cache_dir=cache_dir,
    )
    return blocks.array[:tokens, -1]
