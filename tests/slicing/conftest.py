"""Greedy continuations of a random prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tests.tiny_models import random_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture
def continuation() -> Callable[..., Tensor]:
    """Gives a prompt of 12 tokens and the 8 after it: `continuation(model, use_cache=True)`."""

    def generate(model: PreTrainedModel, *, use_cache: bool) -> Tensor:
        prompt_BT = random_tokens(tokens=12)
        return model.generate(
            prompt_BT,
            attention_mask=torch.ones_like(prompt_BT),
            max_new_tokens=8,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
        )

    return generate
