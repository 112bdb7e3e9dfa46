"""Models of the families that are sliced, and greedy continuations of a random prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tests.tiny_models import make_tiny_model, random_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture(
    scope="session",
    params=["llama_mha", "llama_biased", "mistral_sliding", "qwen2_mixed", "qwen3"],
)
def sliceable(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each family that SliceGPT slices; a test must leave it as it was."""
    return make_tiny_model(request.param)


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
