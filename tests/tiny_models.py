"""Tiny models of every family with random weights, for the tests of masking and all above it.

Three layers, hidden size 32, vocabulary 97. Biases and norms are random too: a family's own
initialisation, zero biases and small weights, would hide most mistakes.

Shapes: U units.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pgprune_lightning.policy import UnitLayout

VOCABULARY = 97
NUM_TOKENS = 24

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, dict[str, Any]] = {
    "llama_mha": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama_gqa": {"model_type": "llama"},
    "llama_biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 6},
    "mistral_sliding": {"model_type": "mistral", "sliding_window": NUM_TOKENS // 3},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_mixed": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": NUM_TOKENS // 3,
        "layer_types": _LAYER_TYPES,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 12, "attention_bias": True},
    "gemma": {"model_type": "gemma", "head_dim": 12, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": NUM_TOKENS // 3,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 2.0,
    },
    "phi3": {"model_type": "phi3"},
    "phi3_sliding": {
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "sliding_window": NUM_TOKENS // 3,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": NUM_TOKENS // 3,
        "layer_types": _LAYER_TYPES,
    },
    "opt": {"model_type": "opt", "ffn_dim": 24, "tie_word_embeddings": True},
    "opt_projected": {"model_type": "opt", "ffn_dim": 24, "word_embed_proj_dim": 20},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt_neox_serial": {
        "model_type": "gpt_neox",
        "use_parallel_residual": False,
        "attention_bias": False,
    },
}
"""One row a layout: what differs from the common sizes."""

KINDS: dict[str, dict[str, Any]] = {
    "kv_group+mlp_channel": {"unit_kinds": ["kv_group", "mlp_channel"]},
    "kv_group": {"unit_kinds": ["kv_group"]},
    "mlp_channel": {"unit_kinds": ["mlp_channel"]},
    "kv_group+4 mlp_channels": {
        "unit_kinds": ["kv_group", "mlp_channel"],
        "channels_per_unit": 4,
    },
    "attention+mlp": {"unit_kinds": ["attention", "mlp"]},
    "attention": {"unit_kinds": ["attention"]},
    "mlp": {"unit_kinds": ["mlp"]},
    "layer": {"unit_kinds": ["layer"]},
}
"""One row a choice of units: what `unit_layout_of` is given besides the model."""


def is_covered(layout: str, choice: str) -> bool:
    """Whether a layout is tested with a choice of units by default.

    Each layout is, with KV groups and channels and with two more choices in turn, so that every
    choice meets four layouts or more. The other pairs are marked `exhaustive`.
    """
    layout_index, choice_index = list(CONFIGS).index(layout), list(KINDS).index(choice)
    return choice_index == 0 or (layout_index + choice_index) % 4 == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the pairs of layout and choice of units that the default tests leave out."""
    for item in items:
        given: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        layout, choice = given.get("family_model", given.get("name")), given.get("units")
        if layout in CONFIGS and choice in KINDS and not is_covered(layout, choice):
            item.add_marker(pytest.mark.exhaustive)


def make_tiny_model(
    name: str, attention: str = "sdpa", seed: int = 1, **overrides: Any
) -> PreTrainedModel:
    """Build one of `CONFIGS` with seeded random weights, frozen; `overrides` go to its config."""
    # Not at the top: pytest reads this file before the environment says that we are offline.
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from pgprune_lightning.masking.decoder_family import supported_attention
    from pgprune_lightning.masking.frozen_model import freeze

    options = CONFIGS[name] | overrides
    config_class = CONFIG_MAPPING[options.pop("model_type")]
    known = {field.name for field in dataclasses.fields(config_class)}
    common = {option: value for option, value in _COMMON.items() if option in known}
    config = config_class(**common | options)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=supported_attention(config, attention)
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        noise = 0.15 * torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in parameter_name  # which start where they change nothing, at 1 or 0
        parameter.data.copy_(parameter + noise if is_norm else noise)
    return freeze(model)


def claim_tied(folder: Path) -> Path:
    """Let the configuration of a saved model say that its head is its embedding."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def random_tokens(rows: int = 2, tokens: int = NUM_TOKENS, seed: int = 0) -> Tensor:
    """Token ids, (rows, tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (rows, tokens), generator=generator)


def masks_of(space: UnitLayout) -> Iterator[tuple[str, Tensor]]:
    """Yield named masks, (U,): nothing dropped, half of the units, and each group emptied."""
    generator = torch.Generator().manual_seed(2)
    yield "all ones", torch.ones(space.num_units, dtype=torch.bool)
    for draw in range(2):
        yield f"random {draw}", torch.rand(space.num_units, generator=generator) < 0.5
    for group in space.groups:
        # A layer or sub-layer is a group of one unit, and the others stay.
        keep_ratio = 1.0 if group.count == 1 else 0.7
        mask_U = torch.rand(space.num_units, generator=generator) < keep_ratio
        mask_U[group.start : group.end] = False
        yield f"no {group.kind} in layer {group.layer}", mask_U


def traces_of_masking(model: PreTrainedModel) -> list[str]:
    """Modules that carry a hook or a replaced forward."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_pre_hooks or module._forward_hooks or "forward" in module.__dict__
    ]


@pytest.fixture(scope="session", params=CONFIGS)
def family_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model of each layout in turn; a test must leave it as it was."""
    return make_tiny_model(request.param)


@pytest.fixture(params=KINDS)
def units(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each choice of units in turn: `unit_layout_of(model, **units)`."""
    return KINDS[request.param]


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes a fresh tiny model: `tiny_model("llama_gqa", tie_word_embeddings=True)`."""
    return make_tiny_model


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
