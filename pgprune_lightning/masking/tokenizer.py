"""Loading the tokenizer that belongs to a base model."""

from __future__ import annotations

import copy
import textwrap
from functools import lru_cache

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


@lru_cache(maxsize=1)
def _gguf_tokenizer(
    source: ModelSource, state: tuple[int, int] | None
) -> PreTrainedTokenizerBase | None:
    """Read a tokenizer that takes seconds to read, once for each state of its file."""
    del state
    return _read(source)


def _read(source: ModelSource) -> PreTrainedTokenizerBase | None:
    return AutoTokenizer.from_pretrained(source.location, **source.keyword_arguments())
