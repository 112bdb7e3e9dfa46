"""Causal language models whose decoder layers have widths of their own.

Each is a family's stock class, built as its configuration says and then narrowed, before weights
are loaded, to `config.kept_widths`. This file comes with a pruned model and needs transformers
alone:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Shapes: B sequences, T tokens, H hidden.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

FAMILY_STEMS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
"""What the names of a family's classes begin with, by `model_type`."""
PREFIX = "pruned_"
"""Of the `model_type` of a pruned model."""
AUTO_CLASSES = {"Config": "AutoConfig", "Model": "AutoModel", "ForCausalLM": "AutoModelForCausalLM"}
"""By the end of the name of a class, what it is found through."""


class NoAttention(nn.Module):
    """Stands where the attention of a layer was cut: adds nothing to the residual stream.

    Args:
        layer_idx: Index of the layer, by which it finds its place in the key-value cache.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: Tensor, *_: Any, past_key_values: Any = None, **__: Any
    ) -> tuple[Tensor, None]:
        """Return zeros in the place of the attention's output, and no attention weights."""
        if past_key_values is not None:
            # Positions and causal masks are counted by what the first layer has in the cache.
            batch_size, num_tokens = hidden_states.shape[:2]
            placeholder = hidden_states.new_zeros(batch_size, 1, num_tokens, 1)
            past_key_values.update(placeholder, placeholder, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoMlp(nn.Module):
    """Stands where the MLP of a layer was cut: adds nothing to the residual stream."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return zeros in the place of the MLP's output."""
        return torch.zeros_like(hidden_states)


class NarrowedLayers:
    """Mixed into a stock class: its layers have the widths that the configuration lists."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)  # type: ignore[call-arg]
        narrow_layers(self.base_model, config.kept_widths)  # type: ignore[attr-defined]


def narrow_layers(backbone: nn.Module, kept_widths: list[list[int]]) -> None:
    """Take rows and columns from the projections of every layer; which ones, the weights decide.

    Args:
        backbone: The model without its vocabulary projection.
        kept_widths: For each layer query heads, key-value heads and MLP channels; 0 for a
            sub-layer that is gone with its norm.
    """
    layers: Any = backbone.get_submodule("layers")
    for index, (layer, widths) in enumerate(zip(layers, kept_widths, strict=True)):
        query_heads, kv_heads, channels = widths
        if kv_heads:
            _narrow_attention(layer.self_attn, query_heads, kv_heads)
        else:
            layer.self_attn, layer.input_layernorm = NoAttention(index), nn.Identity()
        if channels:
            _narrow_mlp(layer.mlp, channels)
        else:
            layer.mlp, layer.post_attention_layernorm = NoMlp(), nn.Identity()


def _narrow_attention(attention: Any, query_heads: int, kv_heads: int) -> None:
    width = query_heads * attention.head_dim
    _narrow(attention.q_proj, rows=width)
    for projection in (attention.k_proj, attention.v_proj):
        _narrow(projection, rows=kv_heads * attention.head_dim)
    _narrow(attention.o_proj, columns=width)


def _narrow_mlp(mlp: Any, channels: int) -> None:
    for projection in (mlp.gate_proj, mlp.up_proj):
        _narrow(projection, rows=channels)
    _narrow(mlp.down_proj, columns=channels)


def _narrow(linear: nn.Linear, *, rows: int | None = None, columns: int | None = None) -> None:
    weight = linear.weight[:rows, :columns].detach().clone()
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[:rows].detach().clone())
    linear.out_features, linear.in_features = weight.shape


@functools.cache
def config_class(stem: str) -> Any:
    """Make the configuration class of a family."""
    stock: Any = getattr(transformers, f"{stem}Config")

    class Config(stock):
        """The dense model's configuration, and what is left of each layer."""

        model_type = f"{PREFIX}{stock.model_type}"
        kept_widths: list[list[int]] | None = None

    return _finished(Config, stem, "AutoConfig")


@functools.cache
def model_class(stem: str, part: str) -> Any:
    """Make a family's class of the backbone, part `Model`, or of the whole, `ForCausalLM`."""
    stock: Any = getattr(transformers, f"{stem}{part}")

    class Model(NarrowedLayers, stock):
        """A stock model whose layers are narrowed."""

    Model.config_class = config_class(stem)
    return _finished(Model, stem, AUTO_CLASSES[part], part)


def _finished(made: Any, stem: str, auto_class: str, part: str = "Config") -> Any:
    made.__name__ = made.__qualname__ = f"Pruned{stem}{part}"
    made._auto_class = auto_class  # so that `save_pretrained` brings this file along
    return made


def auto_map(model_type: str) -> dict[str, str]:
    """What `config.json` says of this file for a dense model of a type."""
    file, stem = __name__.rpartition(".")[2], FAMILY_STEMS[model_type]
    return {auto: f"{file}.Pruned{stem}{part}" for part, auto in AUTO_CLASSES.items()}


def __getattr__(name: str) -> Any:
    """Make a family's classes when they are asked for: importing every family takes long."""
    for stem in FAMILY_STEMS.values():
        for part in AUTO_CLASSES:
            if name == f"Pruned{stem}{part}":
                return config_class(stem) if part == "Config" else model_class(stem, part)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
