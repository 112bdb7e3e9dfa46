"""Stock configurations for models that were cut to equal widths."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from pgprune_lightning.export.widths import LayerWidths, are_equal
from pgprune_lightning.masking.decoder_family import decoder_layers, family_of
from pgprune_lightning.masking.frozen_model import model_on_meta

_OF_THE_FILE = ("model_type", "architectures", "transformers_version", "auto_map")


def stock_config(
    config: PreTrainedConfig, widths: tuple[LayerWidths, ...]
) -> PreTrainedConfig | str:
    """Describe a cut model to a class of transformers, or say why none can be told.

    Args:
        config: The dense model's.
        widths: Of the layers that stay.

    Returns:
        The configuration; or the layer and the rule that stand in the way.
    """
    first = widths[0]
    if not are_equal(widths):
        other = next(layer for layer in widths if layer.sizes != first.sizes)
        return (
            f"layers {first.layer} and {other.layer} have different widths, {first.sizes} and "
            f"{other.sizes} (query heads, key-value heads, MLP channels), and a stock class has one"
        )
    if not (first.kv_groups and first.mlp_channels):
        return f"layer {first.layer} has lost a whole sub-layer, and a stock layer has both"
    values = described(config, widths) | {
        "num_attention_heads": first.query_heads,
        "num_key_value_heads": first.kv_groups,
        "head_dim": _head_dim(config),
        family_of(config).mlp_width: first.mlp_channels,
    }
    try:
        stock = AutoConfig.for_model(config.model_type, **values)
        if _heads(stock) == (first.query_heads, first.kv_groups, _head_dim(config)):
            return stock
        refusal = "its heads share the hidden size"
    except Exception as error:  # each family refuses what it cannot be in its own way
        refusal = str(error)
    if config.model_type == "llama" and not (values["attention_bias"] or values["mlp_bias"]):
        # The same computation in a class that does not ask heads to divide the hidden size.
        return AutoConfig.for_model("mistral", **values | {"sliding_window": None})
    reason = " ".join(refusal.split())
    return f"{type(config).__name__} refuses {first.query_heads} query heads: {reason}"


def _heads(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Query heads, key-value heads and their width in a stock model, as it is built."""
    attention = decoder_layers(model_on_meta(config))[0].attention
    query_heads = attention.output.in_features // attention.head_dim
    return query_heads, attention.num_kv_groups, attention.head_dim


def described(config: PreTrainedConfig, widths: tuple[LayerWidths, ...]) -> dict[str, Any]:
    """The values of a configuration for the layers that stay, without the names of its class."""
    values: dict[str, Any] = {
        name: value for name, value in config.to_dict().items() if name not in _OF_THE_FILE
    }
    values["num_hidden_layers"] = len(widths)
    if values.get("layer_types") is not None:
        values["layer_types"] = [values["layer_types"][layer.layer] for layer in widths]
    return values


def _head_dim(config: PreTrainedConfig) -> int:
    head_dim = getattr(config, "head_dim", None)
    return head_dim or config.hidden_size // config.num_attention_heads
