"""Which models llama.cpp can run after a cut, and the numbers that describe them to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.export.gguf_layers import GgufLayer, are_uniform, head_dim_of
from pgprune_lightning.export.widths import LayerWidths


@dataclass(frozen=True)
class GgufFamily:
    """How llama.cpp runs one family.

    Args:
        uniform: Its graph for layers of one width.
        varying: Its graph for layers of several; None if it has none.
        interleaved: Whether it rotates neighbouring values of a head.
        pruned_heads: Whether it loads fewer query heads than fill the hidden size.
        biases: Options of the configuration that add biases it loads.
    """

    uniform: str
    varying: str | None = None
    interleaved: bool = False
    pruned_heads: bool = True
    biases: tuple[str, ...] = ()


_LLAMA = GgufFamily("llama", "deci", interleaved=True, biases=("attention_bias", "mlp_bias"))
GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": GgufFamily("qwen2", pruned_heads=False),
    "qwen3": GgufFamily("qwen3"),
}
"""By `config.model_type`."""

_ROPE_TYPES = ("default", "linear", "llama3")


def llama_cpp_obstacle(config: PreTrainedConfig, widths: tuple[LayerWidths, ...]) -> str | None:
    """The rule of llama.cpp that a cut model breaks, and the layer; None if it breaks none.

    Args:
        config: The dense model's.
        widths: Of the layers that stay.
    """
    family = GGUF_FAMILIES.get(config.model_type)
    if family is None:
        return (
            f"models of type {config.model_type!r} are not written as GGUF here; those that are: "
            f"{', '.join(GGUF_FAMILIES)}"
        )
    return _model_obstacle(config, family) or _width_obstacle(config, family, widths)


def add_architecture(writer: GGUFWriter, model: PreTrainedModel, layers: list[GgufLayer]) -> None:
    """Describe a model's shape to llama.cpp.

    Args:
        writer: Made for the architecture that `architecture_of` names.
        model: The cut model.
        layers: The layers of the file.
    """
    config, head_dim = model.config, head_dim_of(model)
    writer.add_block_count(len(layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    alone = are_uniform(layers)
    for add, values in (
        (writer.add_head_count, [layer.query_heads for layer in layers]),
        (writer.add_head_count_kv, [layer.kv_heads for layer in layers]),
        (writer.add_feed_forward_length, [layer.channels for layer in layers]),
    ):
        add(values[0] if alone else values)
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def architecture_of(config: PreTrainedConfig, layers: list[GgufLayer]) -> str:
    """The name of the graph that runs these layers."""
    family = GGUF_FAMILIES[config.model_type]
    name = family.uniform if are_uniform(layers) else family.varying
    assert name is not None, "a model that llama.cpp cannot run was not refused"
    return name


def rope_factors(config: PreTrainedConfig, head_dim: int) -> Tensor | None:
    """What each frequency of the rotation is divided by, (head_dim / 2,); None for 1.

    Source: Rotation of Llama 3.1 (`rope_type: llama3` in transformers).
    """
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    wavelengths = 2 * math.pi * float(rope["rope_theta"]) ** exponents
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    context, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    # Wavelengths below context / high stay, those above context / low are stretched by the factor.
    blend = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - blend) / factor + blend)).float()


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    given = dict(getattr(config, "rope_parameters", None) or {})
    return {"rope_type": "default", "rope_theta": 10000.0, **given}


def _model_obstacle(config: PreTrainedConfig, family: GgufFamily) -> str | None:
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if config.model_type == "mistral":
        slides = window is not None and window < config.max_position_embeddings
    rope = _rope(config)
    if slides:
        return f"its graph {family.uniform} has no sliding window, and the model has one ({window})"
    if rope["rope_type"] not in _ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return (
            f"rotary positions of type {rope['rope_type']!r} are not written here; "
            f"{', '.join(_ROPE_TYPES)} of whole heads are"
        )
    if config.hidden_act != "silu":
        return f"its graph {family.uniform} has the activation silu, the model {config.hidden_act}"
    for option in ("attention_bias", "mlp_bias"):
        if getattr(config, option, False) and option not in family.biases:
            return f"its graph {family.uniform} loads no such biases as {option} adds"
    return None


def _width_obstacle(
    config: PreTrainedConfig, family: GgufFamily, widths: tuple[LayerWidths, ...]
) -> str | None:
    present = [layer for layer in widths if layer.kv_groups or layer.mlp_channels]
    if family.varying is not None:
        return None
    if not present:
        return f"every layer is gone, and its graph {family.uniform} needs one"
    first = present[0]
    for layer in present:
        if not (layer.kv_groups and layer.mlp_channels):
            lost = "attention" if layer.mlp_channels else "MLP"
            return f"layer {layer.layer} has no {lost}, and its graph {family.uniform} needs one"
        if layer.sizes != first.sizes:
            return (
                f"layers {first.layer} and {layer.layer} have different widths, {first.sizes} and "
                f"{layer.sizes} (query heads, key-value heads, MLP channels), and its graph "
                f"{family.uniform} has one"
            )
    if not family.pruned_heads and first.query_heads != config.num_attention_heads:
        return (
            f"layer {first.layer} keeps {first.query_heads} of {config.num_attention_heads} query "
            f"heads, and its graph {family.uniform} loads all or none"
        )
    return None
