"""Causal language models whose decoder layers have widths of their own.

Each is a family's stock class, built as its configuration says and then narrowed, before weights
are loaded, to `config.kept_widths`. This file comes with a pruned model and needs transformers
alone:

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Shapes: B sequences, T tokens, H hidden.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

FAMILY_STEMS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "phi3": "Phi3",
    "opt": "OPT",
    "gpt_neox": "GPTNeoX",
}
"""What the names of a family's classes begin with, by `model_type`."""
OTHER_NAMES = {"Gemma3TextForCausalLM": "Gemma3ForCausalLM"}
"""Stock classes that are called otherwise."""
PREFIX = "pruned_"
"""Of the `model_type` of a pruned model."""
AUTO_CLASSES = {"Config": "AutoConfig", "Model": "AutoModel", "ForCausalLM": "AutoModelForCausalLM"}
"""By the end of the name of a class, what it is found through."""


@dataclass(frozen=True)
class Layout:
    """What a family calls the parts of its decoder layers, where it is not what Llama does.

    Args:
        decoder: Path from the backbone to the module that has the layers.
        attention: The attention of a layer.
        attention_norms: Norms that leave a layer with its attention.
        attention_inputs: Projections into the attention, and whose heads they make: of queries,
            keys, values, or all of them.
        attention_output: The projection out of it.
        head_counts: The attention's attributes that count heads of queries, `q`, or of keys and
            values, `k`; `config.NAME` is one of its configuration.
        mlp: The MLP of a layer; empty where its projections lie in the layer itself.
        mlp_norms: Norms that leave a layer with its MLP.
        mlp_inputs: Projections into the MLP, and how many times its channels they make.
        mlp_output: The projection out of it.
    """

    decoder: str = ""
    attention: str = "self_attn"
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    attention_inputs: tuple[tuple[str, str], ...] = (
        *(("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v")),
    )
    attention_output: str = "o_proj"
    head_counts: tuple[tuple[str, str], ...] = ()
    mlp: str = "mlp"
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    mlp_inputs: tuple[tuple[str, int], ...] = (("gate_proj", 1), ("up_proj", 1))
    mlp_output: str = "down_proj"


_NORMS_BEHIND_TOO = Layout(
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
LAYOUTS = {
    "gemma2": _NORMS_BEHIND_TOO,
    "gemma3_text": _NORMS_BEHIND_TOO,
    "phi3": Layout(
        attention_inputs=(("qkv_proj", "qkv"),),
        head_counts=(("config.num_attention_heads", "q"), ("num_key_value_heads", "k")),
        mlp_inputs=(("gate_up_proj", 2),),
    ),
    "opt": Layout(
        decoder="decoder",
        attention_norms=("self_attn_layer_norm",),
        attention_output="out_proj",
        head_counts=(("num_heads", "q"),),
        mlp="",
        mlp_norms=("final_layer_norm",),
        mlp_inputs=(("fc1", 1),),
        mlp_output="fc2",
    ),
    "gpt_neox": Layout(
        attention="attention",
        attention_inputs=(("query_key_value", "qkv"),),
        attention_output="dense",
        mlp_inputs=(("dense_h_to_4h", 1),),
        mlp_output="dense_4h_to_h",
    ),
}
"""By `model_type`; that of all others is Llama's."""


class NoAttention(nn.Module):
    """Stands where the attention of a layer was cut: adds nothing to the residual stream.

    Args:
        layer_idx: Index of the layer, by which it finds its place in the key-value cache.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        *_: Any,
        past_key_values: Any = None,
        layer_past: Any = None,  # what GPT-NeoX calls it
        **__: Any,
    ) -> tuple[Tensor, None]:
        """Return zeros in the place of the attention's output, and no attention weights."""
        cache = past_key_values if layer_past is None else layer_past
        if cache is not None:
            # Positions and causal masks are counted by what the first layer has in the cache.
            batch_size, num_tokens = hidden_states.shape[:2]
            placeholder = hidden_states.new_zeros(batch_size, 1, num_tokens, 1)
            cache.update(placeholder, placeholder, self.layer_idx)
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
        layout = LAYOUTS.get(config.model_type.removeprefix(PREFIX), Layout())
        narrow_layers(self.base_model, config.kept_widths, layout)  # type: ignore[attr-defined]


def narrow_layers(backbone: nn.Module, kept_widths: list[list[int]], layout: Layout) -> None:
    """Take rows and columns from the projections of every layer; which ones, the weights decide.

    Args:
        backbone: The model without its vocabulary projection.
        kept_widths: For each layer query heads, key-value heads and MLP channels; 0 for a
            sub-layer that is gone with its norms.
        layout: What its layers call their parts.
    """
    layers: Any = backbone.get_submodule(layout.decoder).get_submodule("layers")
    for index, (layer, widths) in enumerate(zip(layers, kept_widths, strict=True)):
        query_heads, kv_heads, channels = widths
        if kv_heads:
            attention = layer.get_submodule(layout.attention)
            _narrow_attention(attention, query_heads, kv_heads, layout)
        else:
            setattr(layer, layout.attention, NoAttention(index))
            _remove_norms(layer, layout.attention_norms)
        if channels:
            _narrow_mlp(layer.get_submodule(layout.mlp), channels, layout)
        else:
            _remove_mlp(layer, layout)
            _remove_norms(layer, layout.mlp_norms)


def _remove_norms(layer: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        setattr(layer, name, nn.Identity())


def _remove_mlp(layer: nn.Module, layout: Layout) -> None:
    if layout.mlp:
        setattr(layer, layout.mlp, NoMlp())
        return
    for name, _ in layout.mlp_inputs:
        setattr(layer, name, nn.Identity())
    setattr(layer, layout.mlp_output, NoMlp())


def _narrow_attention(attention: Any, query_heads: int, kv_heads: int, layout: Layout) -> None:
    head_dim = getattr(attention, "head_dim", None) or attention.head_size
    heads = {"q": query_heads, "k": kv_heads, "v": kv_heads}
    for name, roles in layout.attention_inputs:
        rows = sum(heads[role] for role in roles) * head_dim
        _narrow(attention.get_submodule(name), rows=rows)
    _narrow(attention.get_submodule(layout.attention_output), columns=query_heads * head_dim)
    for name, role in layout.head_counts:
        if name.startswith("config."):
            # Layers share a configuration, and each has as many heads as it keeps.
            attention.config = copy.copy(attention.config)
            setattr(attention.config, name.removeprefix("config."), heads[role])
        else:
            setattr(attention, name, heads[role])


def _narrow_mlp(mlp: Any, channels: int, layout: Layout) -> None:
    for name, times in layout.mlp_inputs:
        _narrow(mlp.get_submodule(name), rows=times * channels)
    _narrow(mlp.get_submodule(layout.mlp_output), columns=channels)


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
    name = f"{stem}{part}"
    stock: Any = getattr(transformers, OTHER_NAMES.get(name, name))

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
