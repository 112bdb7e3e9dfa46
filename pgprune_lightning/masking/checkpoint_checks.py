"""What a checkpoint's description says that cannot be, or cannot be loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgprune_lightning.errors import UserError

LARGEST = {
    "num_hidden_layers": 10_000,
    **dict.fromkeys(
        (
            *("hidden_size", "intermediate_size", "ffn_dim", "vocab_size", "head_dim"),
            *("num_attention_heads", "num_key_value_heads", "word_embed_proj_dim"),
        ),
        10_000_000,
    ),
    "max_position_embeddings": 10**12,
}
"""Sizes of a configuration, and what no model reaches."""


def check_sizes(values: Mapping[str, Any], given: str) -> None:
    """Refuse sizes that no model has, before anything of them is built.

    Args:
        values: What `config.json` holds; other types than numbers are refused by transformers.
        given: The model, as the user named it.

    Raises:
        UserError: If there is one.
    """
    for name, largest in LARGEST.items():
        value = values.get(name)
        if isinstance(value, int) and not 1 <= value <= largest:
            raise UserError(
                f"base_model: the configuration of {given!r} says {name} {value}, which must be "
                f"from 1 to {largest}. Restore it from where the model came."
            )


def own_code_message(values: Mapping[str, Any], given: str) -> str | None:
    """What to say of a model that only code from its own folder can load; None for others."""
    if "auto_map" not in values:
        return None
    return (
        f"base_model: {given!r} is a model of type {values.get('model_type')!r} with code of its "
        "own (auto_map in its config.json), and this program runs no code from a model's folder. "
        "Give a model of a type that transformers has built in."
    )
