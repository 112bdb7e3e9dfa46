"""A rotation changes nothing, slicing what carries nothing changes nothing, and more costs more.

Shapes: B sequences, T tokens, H hidden, D dimensions of a subspace, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking import decoder_layers, token_nll
from pgprune_lightning.masking.frozen_model import freeze
from research.slicegpt import slice_model, sliced_parameters
from tests.tiny_models import random_tokens

# Of different shapes: positions and attention masks belong to a batch.
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, tokens=16, seed=1)]
UNLIMITED = 10**9


def logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens_BT, use_cache=False).logits


def test_at_full_width_nothing_changes(sliceable: PreTrainedModel) -> None:
    sliced = slice_model(sliceable, BATCHES, UNLIMITED)
    assert sliced.width == sliceable.config.hidden_size
    tokens_BT = random_tokens(rows=2, seed=2)  # not what the bases come from
    torch.testing.assert_close(
        logits(sliced.model, tokens_BT),
        logits(sliceable, tokens_BT),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(
        token_nll(sliced.model, tokens_BT),
        token_nll(sliceable, tokens_BT),
        rtol=1e-4,
        atol=1e-4,
    )


def test_each_block_has_a_basis_of_its_own(sliceable: PreTrainedModel) -> None:
    """With one basis for all, the shortcuts would be the identity and a test of them hollow."""
    for layer in slice_model(sliceable, BATCHES, UNLIMITED).model.model.layers:
        for shortcut in (layer.attention_shortcut, layer.mlp_shortcut):
            identity = torch.eye(len(shortcut.weight))
            assert (shortcut.weight - identity).abs().max() > 0.1
            torch.testing.assert_close(
                shortcut.weight @ shortcut.weight.T, identity, rtol=0, atol=1e-5
            )


def confine(model: PreTrainedModel, basis_HD: Tensor) -> None:
    """Let everything that is written to the residual stream lie in a subspace."""
    projection_HH = basis_HD @ basis_HD.T
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    embedding.weight.copy_(embedding.weight @ projection_HH)
    for layer in decoder_layers(model):
        for linear in (layer.attention.output, layer.mlp.output):
            linear.weight.copy_(projection_HH @ linear.weight)
            if linear.bias is not None:
                linear.bias.copy_(projection_HH @ linear.bias)


@pytest.mark.parametrize("name", ["llama_mha", "llama_biased", "mistral", "qwen2_mixed", "qwen3"])
def test_deleting_what_carries_nothing_is_exact(
    tiny_model: Callable[..., PreTrainedModel], name: str
) -> None:
    model, dimensions = tiny_model(name), 20
    generator = torch.Generator().manual_seed(8)
    random_HD = torch.randn(32, dimensions, generator=generator)
    confine(model, torch.linalg.qr(random_HD).Q)
    tokens_BT = random_tokens(rows=2, seed=2)
    expected = logits(model, tokens_BT)
    sliced = slice_model(model, BATCHES, sliced_parameters(model, dimensions))
    assert sliced.width == dimensions
    torch.testing.assert_close(logits(sliced.model, tokens_BT), expected, rtol=1e-3, atol=1e-3)
    narrower = slice_model(model, BATCHES, sliced_parameters(model, dimensions - 2))
    assert (logits(narrower.model, tokens_BT) - expected).abs().max() > 0.02


@pytest.mark.parametrize("width", [32, 17, 1])
def test_parameters_are_those_of_all_tensors(sliceable: PreTrainedModel, width: int) -> None:
    allowed = sliced_parameters(sliceable, width)
    sliced = slice_model(sliceable, BATCHES, allowed)
    tensors = {id(value): value for value in sliced.model.state_dict().values()}
    assert sliced.num_parameters == sum(tensor.numel() for tensor in tensors.values()) == allowed
    assert sliced.width == width
    assert sliced.model.model.embed_tokens.weight.shape == (97, width)
    assert sliced.model.lm_head.weight.shape == (97, width)
    assert not any(parameter.requires_grad for parameter in sliced.model.parameters())


def test_the_dense_model_is_not_changed(sliceable: PreTrainedModel) -> None:
    before = {name: value.clone() for name, value in sliceable.state_dict().items()}
    tied = sliceable.config.tie_word_embeddings
    sliced = slice_model(sliceable, BATCHES, sliced_parameters(sliceable, 24))
    for parameter in sliced.model.parameters():
        parameter.zero_()
    assert sliceable.config.tie_word_embeddings == tied
    assert list(sliceable.state_dict()) == list(before)
    for name, value in sliceable.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_bfloat16_stays(tiny_model: Callable[..., PreTrainedModel]) -> None:
    exact = tiny_model("llama_gqa")
    half = nn.Module.to(tiny_model("llama_gqa"), torch.bfloat16)
    sliced = slice_model(half, BATCHES, UNLIMITED)
    assert {parameter.dtype for parameter in sliced.model.parameters()} == {torch.bfloat16}
    nll = token_nll(sliced.model, BATCHES[0]).mean()
    assert float(nll) == pytest.approx(float(token_nll(exact, BATCHES[0]).mean()), abs=0.05)


def test_generates_the_same_tokens_with_and_without_a_cache(
    sliceable: PreTrainedModel, continuation: Callable[..., Tensor]
) -> None:
    sliced = slice_model(sliceable, BATCHES, sliced_parameters(sliceable, 24))
    with_cache, without_cache = (continuation(sliced.model, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without_cache)


def test_a_trained_model_gets_gradually_worse(pgprune_data: Path) -> None:
    folder = pgprune_data / "stories260K"
    model = freeze(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    text = (pgprune_data / "tinystories" / "stories.txt").read_text()
    tokens = AutoTokenizer.from_pretrained(folder)(text[:40_000])["input_ids"]
    blocks = torch.tensor(tokens[: len(tokens) // 128 * 128]).view(-1, 128)
    calibration, held_out = blocks[:-32].split(16), blocks[-32:]

    def perplexity(width: int) -> float:
        sliced = slice_model(model, calibration, sliced_parameters(model, width))
        return math.exp(float(token_nll(sliced.model, held_out).mean()))

    dense = math.exp(float(token_nll(model, held_out).mean()))
    by_width = [perplexity(width) for width in (64, 60, 52, 40)]
    assert by_width[0] == pytest.approx(dense, rel=1e-3)
    assert by_width == sorted(by_width)
    assert by_width[1] < 1.4 * dense
    assert by_width[-1] < 512 / 4


def test_no_calibration_data(tiny_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(UserError, match="no sequence to measure on"):
        slice_model(tiny_model("llama_gqa"), [], UNLIMITED)
