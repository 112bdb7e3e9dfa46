"""A few words from a model, to see whether it still speaks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def greedy_continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, num_tokens: int
) -> str:
    """Continue a text by the likeliest token each time.

    Args:
        model: Masked or not.
        tokenizer: The model's.
        prompt: Beginning of the text.
        num_tokens: Length of the continuation, in tokens, at most.

    Returns:
        The continuation without the prompt.
    """
    encoded = tokenizer(prompt, return_tensors="pt").to(model.device)
    generate: Any = model.generate
    output_BT = generate(
        **encoded,
        max_new_tokens=num_tokens,
        do_sample=False,
        # A mask may skip the first layer's attention, by which the cache counts positions.
        use_cache=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    text = tokenizer.decode(output_BT[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text
