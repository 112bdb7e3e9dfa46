"""A tokenizer whose ids can be told by eye: word "w7" is token 7."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_WORDS = 1000
UNKNOWN, BOS, END = NUM_WORDS, NUM_WORDS + 1, NUM_WORDS + 2


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    # Not at the top: pytest reads this file before the environment says that we are offline.
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(*, special_tokens: bool = True, bos_at_head: bool = True) -> PreTrainedTokenizerFast:
        vocabulary = {f"w{index}": index for index in range(NUM_WORDS)}
        vocabulary |= {"<unk>": UNKNOWN, "<s>": BOS, "</s>": END}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if bos_at_head:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", BOS)]
            )
        named = {"bos_token": "<s>", "eos_token": "</s>"} if special_tokens else {}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", model_max_length=16, **named
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> PreTrainedTokenizerFast:
    """As Llama's: it sets BOS before a text when special tokens are asked for."""
    return make_tokenizer()
