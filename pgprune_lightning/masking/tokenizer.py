"""Loading the tokenizer that belongs to a base model."""

from __future__ import annotations

import copy
import textwrap
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.model_source import ModelSource, resolve_model_source


def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model.

    Args:
        base_model: What `resolve_model_source` takes.

    Raises:
        UserError: If there is none, or it has no end token to set documents apart.
    """
    source = resolve_model_source(base_model)
    try:
        if source.gguf_file is None:
            tokenizer = _read(source)
        else:
            tokenizer = copy.deepcopy(_gguf_tokenizer(source, source.file_state()))
    except Exception as error:  # transformers raises a different type for each missing piece
        reason = textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
        raise UserError(
            f"tokenizer: none could be loaded from {base_model!r}: {reason} "
            "A model folder needs tokenizer.json; a GGUF file needs its tokenizer.ggml.* keys; "
            "otherwise name another source with data.tokenizer."
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer: the one of {base_model!r} has no end token (eos_token), which sets "
            "documents apart in the token stream."
        )
    return tokenizer


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> list[str]:
    """Tokens of a tokenizer that a model has no row for, in the order of their ids.

    Many tokenizers were given some, such as a padding token, that the model was never extended by.

    Args:
        tokenizer: The tokenizer.
        num_rows: Rows of the model's embedding.
    """
    beyond = [(index, token) for token, index in tokenizer.get_vocab().items() if index >= num_rows]
    return [token for _, token in sorted(beyond)]


def check_tokens(
    tokens: ArrayLike, tokenizer: PreTrainedTokenizerBase, num_rows: int, where: str
) -> None:
    """Refuse a text that holds tokens which the model has no row for.

    Args:
        tokens: Token ids, of any shape.
        tokenizer: What made them.
        num_rows: Rows of the model's embedding.
        where: Names the text, for the message.

    Raises:
        UserError: If it does.
    """
    if not (beyond := tokens_beyond(tokenizer, num_rows)):
        return  # a text may be long, and a memory-mapped one is better not read twice
    largest = int(np.max(tokens, initial=0))
    if largest >= num_rows:
        raise UserError(
            f"{where}: it holds the token {tokenizer.convert_ids_to_tokens(largest)!r} with id "
            f"{largest}, but the model has rows for ids up to {num_rows - 1} alone. Tokens that "
            f"the tokenizer has beyond them: {textwrap.shorten(', '.join(beyond), 80)}. Give the "
            "model's own tokenizer, or a text without them."
        )


@lru_cache(maxsize=1)
def _gguf_tokenizer(
    source: ModelSource, state: tuple[int, int] | None
) -> PreTrainedTokenizerBase | None:
    """Read a tokenizer that takes seconds to read, once for each state of its file."""
    del state
    return _read(source)


def _read(source: ModelSource) -> PreTrainedTokenizerBase | None:
    return AutoTokenizer.from_pretrained(source.location, **source.keyword_arguments())
