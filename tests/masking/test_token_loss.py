"""Token losses equal transformers' own, however the vocabulary projection is cut into chunks.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.masking import token_loss, token_nll
from tests.tiny_models import NUM_TOKENS, VOCABULARY, random_tokens


def test_mean_is_the_loss_of_transformers(family_model: PreTrainedModel) -> None:
    tokens_BT = random_tokens(rows=3)
    with torch.no_grad():
        expected = family_model(tokens_BT, labels=tokens_BT).loss
    nll_BT = token_nll(family_model, tokens_BT)
    assert nll_BT.shape == (3, NUM_TOKENS - 1)
    assert nll_BT.dtype == torch.float32
    torch.testing.assert_close(nll_BT.mean(), expected, rtol=0, atol=1e-6)


def test_entry_t_belongs_to_token_t_plus_1(family_model: PreTrainedModel) -> None:
    tokens_BT = random_tokens()
    with torch.no_grad():
        log_probabilities_BTV = family_model(tokens_BT).logits.log_softmax(-1)
    nll_BT = token_nll(family_model, tokens_BT)
    for sequence in range(2):
        for position in range(NUM_TOKENS - 1):
            expected = -log_probabilities_BTV[sequence, position, tokens_BT[sequence, position + 1]]
            torch.testing.assert_close(nll_BT[sequence, position], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens_per_chunk", [0, 1, 7, 46, 1000])
def test_chunk_size_does_not_matter(
    tiny_model: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    tokens_per_chunk: int,
) -> None:
    model, tokens_BT = tiny_model("llama_gqa"), random_tokens()
    expected = token_nll(model, tokens_BT)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(
        lambda _module, _arguments, logits: sizes.append(logits.numel() // VOCABULARY)
    )
    monkeypatch.setattr(token_loss, "LOGITS_PER_CHUNK", tokens_per_chunk * VOCABULARY)
    torch.testing.assert_close(token_nll(model, tokens_BT), expected, rtol=0, atol=1e-6)
    assert max(sizes) <= max(1, tokens_per_chunk)
    assert sum(sizes) == 2 * (NUM_TOKENS - 1)


def test_bfloat16_models_give_float32_losses(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model, tokens_BT = tiny_model("llama_gqa").to(torch.bfloat16), random_tokens()
    nll_BT = token_nll(model, tokens_BT)
    assert nll_BT.dtype == torch.float32
    with torch.no_grad():
        expected = model(tokens_BT, labels=tokens_BT).loss.float()
    torch.testing.assert_close(nll_BT.mean(), expected, rtol=0, atol=1e-5)


def test_no_gradient_is_recorded(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """Not even for a model that was not frozen."""
    model = tiny_model("llama_gqa").requires_grad_(True)
    with torch.enable_grad():
        assert not token_nll(model, random_tokens()).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
