"""Token losses equal transformers' own, however the vocabulary projection is cut into chunks.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from pgprune_lightning.masking import DenseMaskedExecution, token_loss, token_nll, unit_layout_of
from pgprune_lightning.masking.token_loss import predicting_states, token_kl
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


class LogitsRecorder(TorchFunctionMode):
    """Writes down the shapes of what the vocabulary projection makes."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        starts = (self.head.weight.data_ptr(), self.head.weight[-1].data_ptr())
        if func is F.linear and starts[0] <= args[1].data_ptr() <= starts[1]:
            self.shapes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("logits_per_chunk", [0, 1, 46, 500, 7 * VOCABULARY, 10**6])
@pytest.mark.parametrize("tokens_per_chunk", [1, 7, 1000])
def test_neither_chunk_nor_part_matters(
    tiny_model: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    logits_per_chunk: int,
    tokens_per_chunk: int,
) -> None:
    """Every logit is made once, few at a time, and the losses are those of all at once."""
    model, tokens_BT = tiny_model("llama_gqa"), random_tokens()
    logits_BTV = model(tokens_BT).logits[:, :-1]
    expected = F.cross_entropy(
        logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none"
    )
    monkeypatch.setattr(token_loss, "LOGITS_PER_CHUNK", {"cpu": logits_per_chunk, "cuda": 1})
    monkeypatch.setattr(token_loss, "TOKENS_PER_CHUNK", tokens_per_chunk)
    with LogitsRecorder(model.lm_head) as recorder:
        nll_BT = token_nll(model, tokens_BT)
    torch.testing.assert_close(nll_BT.flatten(), expected, rtol=0, atol=1e-6)
    num_tokens = tokens_BT.shape[0] * (NUM_TOKENS - 1)
    assert sum(tokens * words for tokens, words in recorder.shapes) == num_tokens * VOCABULARY
    assert max(tokens for tokens, _ in recorder.shapes) == min(num_tokens, tokens_per_chunk)
    for tokens, words in recorder.shapes:
        assert tokens * words <= max(tokens, logits_per_chunk)


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


def half_masked(model: PreTrainedModel) -> AbstractContextManager[PreTrainedModel]:
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.5
    return DenseMaskedExecution(model, space).masked(mask_U)


def test_divergence_is_that_of_all_logits(family_model: PreTrainedModel) -> None:
    tokens_BT = random_tokens(rows=3)
    with torch.no_grad():
        dense_BTV = family_model(tokens_BT).logits[:, :-1].log_softmax(-1)
        dense_NH = predicting_states(family_model, tokens_BT)
        with half_masked(family_model) as masked:
            masked_BTV = masked(tokens_BT).logits[:, :-1].log_softmax(-1)
            kl_BT = token_kl(masked, tokens_BT, dense_NH)
    by_definition = (dense_BTV.exp() * (dense_BTV - masked_BTV)).sum(-1)
    torch.testing.assert_close(kl_BT, by_definition, rtol=0, atol=1e-5)
    mean = F.kl_div(
        masked_BTV.flatten(0, 1), dense_BTV.flatten(0, 1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(kl_BT.mean(), mean, rtol=0, atol=1e-6)
    assert kl_BT.shape == (3, NUM_TOKENS - 1)
    # The other direction is another number: the test would see the two exchanged.
    reverse = (masked_BTV.exp() * (masked_BTV - dense_BTV)).sum(-1)
    assert (kl_BT - reverse).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_model_does_not_diverge_from_itself(
    tiny_model: Callable[..., PreTrainedModel], dtype: torch.dtype
) -> None:
    model, tokens_BT = tiny_model("llama_gqa").to(dtype), random_tokens()
    kl_BT = token_kl(model, tokens_BT, predicting_states(model, tokens_BT))
    assert kl_BT.dtype == torch.float32
    assert not kl_BT.any()


@pytest.mark.parametrize("tokens_per_chunk", [0, 1, 7, 1000])
def test_chunks_of_the_divergence_hold_the_logits_of_both_models(
    tiny_model: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    tokens_per_chunk: int,
) -> None:
    model, tokens_BT = tiny_model("llama_gqa"), random_tokens()
    dense_NH = predicting_states(model, tokens_BT)
    with half_masked(model) as masked:
        expected = token_kl(masked, tokens_BT, dense_NH)
        logits = {"cpu": tokens_per_chunk * VOCABULARY, "cuda": 1}
        monkeypatch.setattr(token_loss, "LOGITS_PER_CHUNK", logits)
        with LogitsRecorder(model.lm_head) as recorder:
            found = token_kl(masked, tokens_BT, dense_NH)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    sizes = [tokens for tokens, _ in recorder.shapes]
    assert 2 * max(sizes) <= max(2, tokens_per_chunk)
    assert sum(sizes) == 2 * 2 * (NUM_TOKENS - 1)
