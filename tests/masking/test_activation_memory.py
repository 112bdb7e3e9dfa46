"""What a forward pass allocates, on published shapes without weights, against what is foreseen."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, PreTrainedModel

from pgprune_lightning.masking import (
    CompactExecution,
    DenseMaskedExecution,
    token_nll,
    unit_layout_of,
)
from pgprune_lightning.masking.activation_memory import (
    BYTES_PER_FORWARD,
    bytes_per_token,
    sequences_per_forward,
)
from pgprune_lightning.masking.frozen_model import freeze, model_on_meta
from pgprune_lightning.masking.token_loss import predicting_states

LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
LLAMA_3_8B = LLAMA_2_7B | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN3_WIDE_HEADS = LLAMA_3_8B | {"model_type": "qwen3", "intermediate_size": 3072, "head_dim": 256}
SHAPES = {"llama-2-7b": LLAMA_2_7B, "llama-3-8b": LLAMA_3_8B, "wide heads": QWEN3_WIDE_HEADS}


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no fused attention, nor positions in which to look for packed sequences."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query.clone())
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices", lambda _positions: None
    )


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and alive together."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        tensors = [*model.parameters(), *model.buffers()]
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)
        self.alive = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                weakref.finalize(storage, self._forget, storage.nbytes())
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
        return result

    def _forget(self, num_bytes: int) -> None:
        self.alive -= num_bytes


def model_of(shape: str, attention: str = "sdpa") -> PreTrainedModel:
    config = AutoConfig.for_model(**SHAPES[shape], num_hidden_layers=2, dtype=torch.bfloat16)
    config._attn_implementation = attention
    return freeze(model_on_meta(config).to(torch.bfloat16))


def peak_of(model: PreTrainedModel, rows: int, tokens: int, with_loss: bool) -> int:
    """Bytes alive together under half a mask, by the worse of both executions."""
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.arange(space.num_units) % 2 == 0
    tokens_BT = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")
    peaks = []
    for execution in (DenseMaskedExecution(model, space), CompactExecution(model, space)):
        with execution.masked(mask_U) as masked, PeakMemory(model) as memory:
            (token_nll if with_loss else predicting_states)(masked, tokens_BT)
        peaks.append(memory.peak)
    return max(peaks)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_foreseen_is_enough_and_not_far_off(shape: str) -> None:
    model = model_of(shape)
    rows = sequences_per_forward(model.config, 128, torch.bfloat16)
    peak = peak_of(model, rows, 128, with_loss=False)
    # Gathered copies of weights are besides, and do not grow with the tokens.
    weight_bytes = 2 * max(parameter.numel() for parameter in model.model.layers.parameters())
    assert BYTES_PER_FORWARD / 3 < peak < BYTES_PER_FORWARD + weight_bytes


@pytest.mark.parametrize("shape", ["llama-2-7b", "llama-3-8b"])
@pytest.mark.parametrize(("rows", "tokens"), [(8, 128), (None, 4096)])
def test_loss_and_all_take_at_most_2_gb(shape: str, rows: int | None, tokens: int) -> None:
    """A training batch of the paper in one forward, and as many long sequences as are allowed."""
    model = model_of(shape)
    allowed = sequences_per_forward(model.config, tokens, torch.bfloat16)
    assert allowed >= (rows or 1)
    assert peak_of(model, rows or allowed, tokens, with_loss=True) < 2e9


def test_eager_attention_counts_its_scores() -> None:
    fused, eager = (model_of("llama-2-7b", attention).config for attention in ("sdpa", "eager"))
    assert bytes_per_token(fused, torch.float32) == bytes_per_token(eager, torch.float32)
    in_both = [sequences_per_forward(config, 1024, torch.bfloat16) for config in (fused, eager)]
    assert in_both == [6, 1]


def test_a_sequence_is_never_split() -> None:
    config = model_of("llama-2-7b").config
    assert sequences_per_forward(config, 10**6, torch.bfloat16) == 1
