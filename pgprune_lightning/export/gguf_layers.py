"""The layers of a cut model as llama.cpp can run them.

Its graph `deci` gives every layer its own numbers of heads and channels, but has gaps: it cannot
load a first layer without attention, drops the attention of a layer that has no MLP, and aborts
when that is the last one. There a sub-layer of zeros stands instead, which adds exactly nothing. A
layer with neither sub-layer is left out.

Shapes: W rows of a projection, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

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
