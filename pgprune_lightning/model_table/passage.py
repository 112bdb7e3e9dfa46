"""A text as one model reads it: in its tokens, at one length, with or without overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from pgprune_lightning.data.text_source import TextSource
from pgprune_lightning.data.token_blocks import TokenBlocks
from pgprune_lightning.errors import about
from pgprune_lightning.evaluation import (
    Evaluated,
    evaluate_perplexity,
    strided_perplexity,
    text_blocks,
    text_stream,
)
from pgprune_lightning.model_table.protocol import TextProtocol


@dataclass(frozen=True)
class Passage:
    """A tokenised text.

    Args:
        text: Its name.
        length: Tokens of a block or window, BOS included.
        tokens: Blocks, or for windows a row of tokens, (N,).
        stride: Tokens between the beginnings of windows; None for blocks.
        bos: Token that windows begin with; None: none.
    """

    text: str
    length: int
    tokens: TokenBlocks | NDArray[np.int32]
    stride: int | None = None
    bos: int | None = None

    @property
    def title(self) -> str:
        """Its name in tables."""
        return passage_title(self.text, self.length, self.stride)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """All its tokens, of any shape."""
        return self.tokens.array if isinstance(self.tokens, TokenBlocks) else self.tokens

    def perplexity(
        self, evaluated: Evaluated, tokens_per_batch: int, description: str | None
    ) -> tuple[float, int]:
        """Measure a model on it.

        Args:
            evaluated: The model.
            tokens_per_batch: Tokens that go through it at once, but one block at least.
            description: Text before the progress bar; None for no bar.

        Returns:
            The perplexity, and the number of tokens that were scored.
        """
        batch_size = max(1, tokens_per_batch // self.length)
        if isinstance(self.tokens, TokenBlocks):
            loader = DataLoader(self.tokens, batch_size=batch_size)
            value = evaluate_perplexity(
                evaluated.token_nll, loader, device=evaluated.device, description=description
            )
            return value, len(self.tokens) * (self.length - 1)
        assert self.stride is not None
        return strided_perplexity(
            evaluated.token_nll,
            self.tokens,
            length=self.length,
            stride=self.stride,
            bos=self.bos,
            batch_size=batch_size,
            device=evaluated.device,
            description=description,
        )


def passage_title(text: str, length: int, stride: int | None) -> str:
    """How tables call a text at a length."""
    return f"{text} at {length}" + ("" if stride is None else f", stride {stride}")


def read_passages(
    protocol: TextProtocol, tokenizer: PreTrainedTokenizerBase, model_type: str
) -> list[Passage]:
    """Tokenise all texts for a model; what other models have made is found in the cache.

    Args:
        protocol: What is read.
        tokenizer: The model's.
        model_type: Its family.

    Raises:
        UserError: If a text cannot be read or is too short, or the tokenizer lacks a token.
    """
    bos = protocol.has_bos(model_type)
    with about("--texts"):
        return [
            passage
            for source in protocol.texts
            for passage in _passages(source, protocol, tokenizer, bos)
        ]


def _passages(
    source: TextSource, protocol: TextProtocol, tokenizer: PreTrainedTokenizerBase, bos: bool
) -> Iterator[Passage]:
    for length in protocol.lengths:
        blocks = text_blocks(source, tokenizer, length, tokens=protocol.tokens, bos_per_block=bos)
        yield Passage(source.title, length, blocks)
    if protocol.stride is not None:
        stream = text_stream(source, tokenizer, tokens=protocol.tokens, bos_per_block=bos)
        token = tokenizer.bos_token_id if bos else None
        yield Passage(source.title, max(protocol.lengths), stream, protocol.stride, token)
