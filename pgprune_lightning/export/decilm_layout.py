"""How a cut model fits into vLLM's `DeciLMForCausalLM`, where all layers have as many query heads.

A layer's key-value heads may be any divisor of the query heads, and each has equally many of them.
So heads of zeros are added: query heads to fill the groups, and key-value heads to reach a divisor.
Columns of zeros in the output projection make that exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from pgprune_lightning.export.widths import LayerWidths

DECILM_FAMILIES = ("llama", "mistral", "qwen2")


@dataclass(frozen=True)
class DeciLayer:
    """One layer of the export.

    Args:
        source: Place, among the layers that the mask leaves, of the one that it holds; None for
            one of zeros alone.
        kv_heads: Key-value heads, with those of zeros; 0 where there is no attention.
        channels: Width of the MLP; 0 where there is none.
    """

    source: int | None
    kv_heads: int
    channels: int


@dataclass(frozen=True)
class DeciLayout:
    """The shape of the export.

    Args:
        query_heads: Of every layer that has an attention.
        layers: Its layers.
    """

    query_heads: int
    layers: tuple[DeciLayer, ...]


def decilm_obstacle(config: PreTrainedConfig) -> str | None:
    """The rule of `DeciLMForCausalLM` that a model breaks; None if it breaks none.

    Which layers a mask leaves does not matter: every width can be filled up.

    Args:
        config: The dense model's.
    """
    if config.model_type not in DECILM_FAMILIES:
        return (
            f"it computes as Llama does, and models of type {config.model_type!r} do not; those "
            f"that do: {', '.join(DECILM_FAMILIES)}"
        )
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if config.model_type == "mistral":
        slides = window is not None and window < config.max_position_embeddings
    if slides:
        return f"it has no sliding window, and the model has one ({window})"
    if config.hidden_act != "silu":
        return f"it has the activation silu, and the model {config.hidden_act}"
    return None


def decilm_layout(config: PreTrainedConfig, widths: Sequence[LayerWidths]) -> DeciLayout:
    """Choose the numbers of heads that cost the fewest parameters.

    The first layer always has an attention, because vLLM's residual stream begins there; one of
    zeros where the mask leaves none. A layer with neither sub-layer is left out.

    Args:
        config: The dense model's.
        widths: Of the layers that the mask leaves.
    """
    all_groups = config.num_key_value_heads or config.num_attention_heads
    heads_a_group = config.num_attention_heads // all_groups
    kept: list[tuple[int | None, int, int]] = [
        (place, layer.kv_groups, layer.mlp_channels)
        for place, layer in enumerate(widths)
        if layer.kv_groups or layer.mlp_channels
    ]
    groups = [count for _, count, _ in kept] or [0]
    groups[0] = max(groups[0], 1)
    query_heads = min(
        range(max(groups) * heads_a_group, all_groups * heads_a_group + 1),
        key=lambda heads: _cost(heads, groups, heads_a_group),
    )
    kv_heads = [_filled(count, query_heads, heads_a_group) for count in groups]
    layers = [
        DeciLayer(place, heads, channels)
        for (place, _, channels), heads in zip(kept or [(None, 0, 0)], kv_heads, strict=True)
    ]
    return DeciLayout(query_heads, tuple(layers))


def _cost(query_heads: int, groups: list[int], heads_a_group: int) -> float:
    """Rows and columns of all projections, in heads; infinite where a layer does not fit."""
    filled = [_filled(count, query_heads, heads_a_group) for count in groups if count]
    if 0 in filled:
        return float("inf")
    return float(sum(2 * query_heads + 2 * kv_heads for kv_heads in filled))


def _filled(groups: int, query_heads: int, heads_a_group: int) -> int:
    """The least divisor of the query heads that holds so many groups; 0 if there is none."""
    if not groups:
        return 0
    most = query_heads // heads_a_group
    return next((count for count in range(groups, most + 1) if query_heads % count == 0), 0)
