"""Cut models as llama.cpp can run them: their layers, and the numbers that describe them.

Its graph `deci` gives every layer its own numbers of heads and channels, but has gaps: it cannot
load a first layer without attention, drops the attention of a layer that has no MLP, and aborts
when that is the last one. There a sub-layer of zeros is written instead, which adds exactly
nothing. A layer with neither sub-layer is left out.

Shapes: W rows of a projection, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.masking.decoder_family import backbone_of

_ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
_HEAD_NORMS = {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
_MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


@dataclass(frozen=True)
class GgufLayer:
    """One layer of the file.

    Args:
        module: The layer of the cut model; None where every layer was cut.
        query_heads: Query heads; a sub-layer of zeros has one, as it has key-value heads.
        kv_heads: Key-value heads; 0 where there is no attention.
        channels: Width of the MLP, with channels of zeros; never 0.
    """

    module: nn.Module | None
    query_heads: int
    kv_heads: int
    channels: int


def gguf_layers(model: PreTrainedModel, channel_multiple: int) -> list[GgufLayer]:
    """Lay out the layers of a cut model, with zeros where llama.cpp needs a sub-layer.

    Args:
        model: What `cut_model` returns, with separate query, key and value projections.
        channel_multiple: Channels are filled up with zeros to a multiple of this, because packed
            types hold whole blocks of a row only.

    Returns:
        The layers of the file; at least one.
    """
    head_dim = head_dim_of(model)
    found = [
        _measured(module, head_dim)
        for module in backbone_of(model).get_submodule("layers").children()
    ]
    kept = [layer for layer in found if layer.kv_heads or layer.channels]
    filled = [
        replace(layer, channels=-(-max(layer.channels, 1) // channel_multiple) * channel_multiple)
        for layer in kept or [GgufLayer(None, 0, 0, 0)]
    ]
    if not filled[0].kv_heads:
        filled[0] = replace(filled[0], query_heads=1, kv_heads=1)
    return filled


def are_uniform(layers: list[GgufLayer]) -> bool:
    """Whether all layers are alike, so that a graph of one width can run them."""
    return len({(layer.query_heads, layer.kv_heads, layer.channels) for layer in layers}) == 1


def head_dim_of(model: PreTrainedModel) -> int:
    """Width of a head, which no mask changes."""
    config = model.config
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def layer_tensors(
    layer: GgufLayer, *, hidden_size: int, head_dim: int, interleaved: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer by their names in the file, without the layer's prefix.

    Args:
        layer: One of `gguf_layers`.
        hidden_size: Width of the residual stream.
        head_dim: Width of a head.
        interleaved: Whether the graph rotates neighbouring values of a head, as Llama's does there,
            where transformers rotates those half a head apart.
    """
    if layer.kv_heads:
        yield from _attention_tensors(layer, hidden_size, head_dim, interleaved)
    yield from _mlp_tensors(layer, hidden_size)


def _measured(module: nn.Module, head_dim: int) -> GgufLayer:
    attention, mlp = module.get_submodule("self_attn"), module.get_submodule("mlp")
    # What stands for a cut sub-layer has no projections, of whichever class it is.
    has_attention, has_mlp = hasattr(attention, "k_proj"), hasattr(mlp, "up_proj")
    return GgufLayer(
        module=module,
        query_heads=_rows(attention, "q_proj") // head_dim if has_attention else 0,
        kv_heads=_rows(attention, "k_proj") // head_dim if has_attention else 0,
        channels=_rows(mlp, "up_proj") if has_mlp else 0,
    )


def _rows(parent: nn.Module, name: str) -> int:
    return parent.get_parameter(f"{name}.weight").shape[0]


def _attention_tensors(
    layer: GgufLayer, hidden_size: int, head_dim: int, interleaved: bool
) -> Iterator[tuple[str, Tensor]]:
    attention = None if layer.module is None else layer.module.get_submodule("self_attn")
    if attention is None or not hasattr(attention, "k_proj"):
        yield "attn_norm.weight", torch.ones(hidden_size)
        for name in ("attn_q", "attn_k", "attn_v"):
            yield f"{name}.weight", torch.zeros(head_dim, hidden_size)
        yield "attn_output.weight", torch.zeros(hidden_size, head_dim)
        return
    assert layer.module is not None
    yield "attn_norm.weight", layer.module.get_parameter("input_layernorm.weight")
    for name, values in _parameters(attention, _ATTENTION | _HEAD_NORMS):
        is_rotated = name.startswith(("attn_q.", "attn_k."))
        yield name, _interleave(values, head_dim) if interleaved and is_rotated else values


def _mlp_tensors(layer: GgufLayer, hidden_size: int) -> Iterator[tuple[str, Tensor]]:
    mlp = None if layer.module is None else layer.module.get_submodule("mlp")
    if mlp is None or not hasattr(mlp, "up_proj"):
        yield "ffn_norm.weight", torch.ones(hidden_size)
        for name in ("ffn_gate", "ffn_up"):
            yield f"{name}.weight", torch.zeros(layer.channels, hidden_size)
        yield "ffn_down.weight", torch.zeros(hidden_size, layer.channels)
        return
    assert layer.module is not None
    missing = layer.channels - _rows(mlp, "up_proj")
    yield "ffn_norm.weight", layer.module.get_parameter("post_attention_layernorm.weight")
    for name, values in _parameters(mlp, _MLP):
        if name == "ffn_down.weight":
            yield name, F.pad(values, (0, missing))
        elif name == "ffn_down.bias":
            yield name, values
        else:
            yield name, F.pad(values, (0, 0) * (values.dim() - 1) + (0, missing))


def _parameters(parent: nn.Module, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            values = getattr(getattr(parent, ours, None), kind, None)
            if values is not None:
                yield f"{theirs}.{kind}", values


def _interleave(values: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head, (W, D) or (W,): value i beside value i + head_dim / 2."""
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


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
