"""A continuation is the likeliest token each time, also where a mask skips the first attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pgprune_lightning.evaluation import greedy_continuation
from pgprune_lightning.masking import DenseMaskedExecution, unit_layout_of
from tests.tiny_models import VOCABULARY

PROMPT = "w5 w9 w60 w33"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Token 7 is the word "w7"."""
    words = {f"w{index}": index for index in range(VOCABULARY)}
    words["</s>"] = VOCABULARY  # beyond what the model can say
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", eos_token="</s>")


@torch.no_grad()
def likeliest_words(model: PreTrainedModel, prompt: str, num_tokens: int) -> str:
    tokens = [int(word.removeprefix("w")) for word in prompt.split()]
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return " ".join(f"w{token}" for token in tokens[-num_tokens:])


@pytest.mark.parametrize("emptied", [None, "kv_group", "mlp_channel", "layer"])
def test_likeliest_token_each_time(
    tiny_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    emptied: str | None,
) -> None:
    model = tiny_model("llama_gqa")
    space = unit_layout_of(model, ["layer"] if emptied == "layer" else ["kv_group", "mlp_channel"])
    mask_U = torch.ones(space.num_units, dtype=torch.bool)
    if emptied is not None:
        space.view(mask_U, 0, emptied).fill_(False)
    with DenseMaskedExecution(model, space).masked(mask_U) as masked:
        expected = likeliest_words(masked, PROMPT, 8)
        assert greedy_continuation(masked, tokenizer, PROMPT, 8) == expected


def test_ends_at_the_end_token(
    tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama_gqa")
    words = likeliest_words(model, PROMPT, 8).split()
    end = words[3]
    model.generation_config.eos_token_id = int(end.removeprefix("w"))
    assert greedy_continuation(model, tokenizer, PROMPT, 8).split() == words[: words.index(end) + 1]
