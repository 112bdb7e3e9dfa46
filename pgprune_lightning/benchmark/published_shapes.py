"""The shapes of published models, for which a benchmark needs no weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from pgprune_lightning.errors import UserError, did_you_mean

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "llama-2-13b": {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    "mistral-7b": {
        "model_type": "mistral",
        "vocab_size": 32_768,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
}
"""What differs from the defaults of each model type.

Source: config.json of meta-llama/Llama-2-7b-hf, meta-llama/Llama-2-13b-hf,
meta-llama/Meta-Llama-3-8B, mistralai/Mistral-7B-Instruct-v0.3 and HuggingFaceTB/SmolLM2-135M.
"""


def shape_config(name: str) -> PreTrainedConfig:
    """The configuration of a published shape.

    Raises:
        UserError: There is none of this name.
    """
    if name not in SHAPES:
        raise UserError(
            f"--shape: {name!r} is not one of {', '.join(SHAPES)}.{did_you_mean(name, SHAPES)} "
            "For any other model give --model FOLDER_OR_ID."
        )
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {"tie_word_embeddings": False, "rms_norm_eps": 1e-5} | SHAPES[name]
    config = AutoConfig.for_model(**tokens, **sizes)
    assert isinstance(config, PreTrainedConfig)
    return config
