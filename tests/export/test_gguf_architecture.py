"""Which models llama.cpp can run, by the rule and the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pgprune_lightning.export.gguf_architecture import llama_cpp_obstacle, rope_factors
from pgprune_lightning.export.widths import LayerWidths

VARYING = (LayerWidths(0, 2, 4, 24), LayerWidths(1, 1, 2, 9), LayerWidths(2, 0, 0, 24))
EVEN = tuple(LayerWidths(layer, 1, 2, 9) for layer in range(3))


@pytest.mark.parametrize(
    ("name", "overrides", "widths", "reason"),
    [
        ("llama_gqa", {}, VARYING, None),
        ("llama_biased", {}, VARYING, None),
        ("mistral", {}, VARYING, None),
        ("mistral_sliding", {}, EVEN, "no sliding window"),
        ("mistral_sliding", {"sliding_window": 128}, EVEN, None),
        ("qwen2_mixed", {}, EVEN, "no sliding window"),
        ("qwen3", {}, EVEN, "attention_bias"),
        ("qwen3", {"attention_bias": False}, EVEN, None),
        ("qwen3", {"attention_bias": False}, VARYING, "layers 0 and 1 have different widths"),
        ("qwen3", {"attention_bias": False}, VARYING[2:], "layer 2 has no attention"),
        ("qwen3", {"attention_bias": False}, (), "every layer is gone"),
        ("qwen2", {}, EVEN, "layer 0 keeps 2 of 4 query heads"),
        ("qwen2", {}, (LayerWidths(1, 2, 4, 9),), None),
        ("llama_gqa", {"hidden_act": "gelu"}, EVEN, "activation silu"),
        (
            "llama_gqa",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            EVEN,
            "'dynamic'",
        ),
    ],
)
def test_the_rule_that_stands_in_the_way(
    tiny_model: Callable[..., PreTrainedModel],
    name: str,
    overrides: dict[str, Any],
    widths: tuple[LayerWidths, ...],
    reason: str | None,
) -> None:
    found = llama_cpp_obstacle(tiny_model(name, **overrides).config, widths)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found


def test_frequencies_of_llama_3_are_those_of_transformers() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    factors = rope_factors(config, 128)
    assert factors is not None
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 5e5 ** (torch.arange(0, 128, 2) / 128)
    torch.testing.assert_close(plain / factors, expected)
    assert len(set(factors.tolist())) > 3
    plain_rope = {"rope_type": "default", "rope_theta": 1e4}
    assert rope_factors(LlamaConfig(rope_parameters=plain_rope), 128) is None
