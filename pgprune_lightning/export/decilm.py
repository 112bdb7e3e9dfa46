"""Format `decilm`: a folder for vLLM, each layer with its own key-value heads and MLP.

Shapes: W rows of a projection, D hidden size, B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from pgprune_lightning.errors import UserError
from pgprune_lightning.export import configuration_decilm
from pgprune_lightning.export.configuration_decilm import DeciLMConfig
from pgprune_lightning.export.decilm_layout import (
    DeciLayer,
    DeciLayout,
    decilm_layout,
    decilm_obstacle,
)
from pgprune_lightning.export.decilm_reader import DeciReader
from pgprune_lightning.export.export_format import ExportFormat, ExportOptions, Logits, PrunedModel
from pgprune_lightning.export.stock import described
from pgprune_lightning.export.widths import LayerWidths
from pgprune_lightning.masking.decoder_family import backbone_of


class DeciLM(ExportFormat):
    """The Llama of vLLM whose layers differ; query heads are filled up with zeros."""

    name = "decilm"
    purpose = "for vLLM, each layer with its own key-value heads and MLP"

    def check(
        self, config: PreTrainedConfig, widths: tuple[LayerWidths, ...], options: ExportOptions
    ) -> None:
        """Refuse what does not compute as Llama does."""
        if (obstacle := decilm_obstacle(config)) is not None:
            raise UserError(
                f"export: vLLM's DeciLMForCausalLM cannot run this model: {obstacle}. Export "
                "--format uniform, padded or hf instead."
            )

    def write(self, pruned: PrunedModel, folder: Path, options: ExportOptions) -> None:
        """Write weights, configuration with its class, and tokenizer."""
        config = pruned.dense.config
        layout = decilm_layout(config, pruned.widths)
        save_torch_state_dict(dict(_tensors(pruned, layout)), folder)
        _described(pruned, layout).save_pretrained(folder)
        source = Path(configuration_decilm.__file__)
        shutil.copyfile(source, folder / source.name)
        if pruned.dense.generation_config is not None:
            pruned.dense.generation_config.save_pretrained(folder)
        pruned.planned.tokenizer.save_pretrained(folder)

    def reload(self, folder: Path, pruned: PrunedModel, device: torch.device) -> Logits:
        """What vLLM computes of the folder, computed here as it does."""
        return DeciReader(folder, device, pruned.dense.dtype).logits

    def parameters(self, pruned: PrunedModel) -> int:
        """With the heads of zeros that fill up every layer."""
        layout = decilm_layout(pruned.dense.config, pruned.widths)
        return sum(values.numel() for _, values in _tensors(pruned, layout))


def _described(pruned: PrunedModel, layout: DeciLayout) -> DeciLMConfig:
    config = pruned.dense.config
    values = described(config, pruned.widths)
    for name in ("layer_types", "num_key_value_heads", "intermediate_size"):
        values.pop(name, None)  # each layer has its own
    rope = dict(values.get("rope_parameters") or {"rope_type": "default", "rope_theta": 10000.0})
    values |= {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "num_hidden_layers": len(layout.layers),
        "num_attention_heads": layout.query_heads,
        "head_dim": _head_dim(config),
        "dtype": str(pruned.dense.dtype).removeprefix("torch."),
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "block_configs": [_block(layer, layout.query_heads) for layer in layout.layers],
    }
    if config.model_type == "qwen2":
        values["qkv_bias"] = True
    return DeciLMConfig(**values)


def _block(layer: DeciLayer, query_heads: int) -> dict[str, Any]:
    in_group = query_heads // layer.kv_heads if layer.kv_heads else None
    return {
        "attention": {"no_op": not layer.kv_heads, "n_heads_in_group": in_group},
        "ffn": {"no_op": not layer.channels, "intermediate_size": layer.channels or None},
    }


def _head_dim(config: PreTrainedConfig) -> int:
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def _tensors(pruned: PrunedModel, layout: DeciLayout) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by the names that vLLM knows, which are Llama's."""
    model, head_dim = pruned.cut, _head_dim(pruned.dense.config)
    backbone = backbone_of(model)
    yield "model.embed_tokens.weight", backbone.get_parameter("embed_tokens.weight")
    yield "model.norm.weight", backbone.get_parameter("norm.weight")
    if not model.config.tie_word_embeddings:
        yield "lm_head.weight", model.get_output_embeddings().weight
    modules = list(backbone.get_submodule("layers").children())
    for index, layer in enumerate(layout.layers):
        module = None if layer.source is None else modules[layer.source]
        groups = 0 if layer.source is None else pruned.widths[layer.source].kv_groups
        tensors: dict[str, Tensor] = {}
        if layer.kv_heads and (module is None or not groups):
            tensors |= _no_attention(layer, layout.query_heads, pruned, head_dim)
        elif layer.kv_heads and module is not None:
            shape = (groups, layer.kv_heads, layout.query_heads // layer.kv_heads, head_dim)
            tensors |= dict(_attention(module, *shape))
        if layer.channels and module is not None:
            for part in ("mlp", "post_attention_layernorm"):
                values = module.get_submodule(part).named_parameters()
                tensors |= {f"{part}.{name}": value for name, value in values}
        for name, value in tensors.items():
            yield f"model.layers.{index}.{name}", value


def _attention(
    module: nn.Module, groups: int, kv_heads: int, in_group: int, head_dim: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an attention with heads of zeros."""
    yield "input_layernorm.weight", module.get_parameter("input_layernorm.weight")
    for name, value in module.get_submodule("self_attn").named_parameters():
        if name in ("q_proj.weight", "q_proj.bias"):
            found = _with_zeros(value, groups, kv_heads, in_group, head_dim)
        elif name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
            found = _with_zeros(value, groups, kv_heads, 1, head_dim)
        elif name == "o_proj.weight":
            found = _with_zeros(value.T, groups, kv_heads, in_group, head_dim).T.contiguous()
        else:
            assert name == "o_proj.bias", name
            found = value
        yield f"self_attn.{name}", found


def _with_zeros(rows: Tensor, groups: int, kv_heads: int, heads: int, head_dim: int) -> Tensor:
    """Give each group so many heads, and the layer so many groups; (W, D) or (W,)."""
    rest = rows.shape[1:]
    grouped = rows.reshape(groups, -1, head_dim, *rest)
    filled = rows.new_zeros(kv_heads, heads, head_dim, *rest)
    filled[:groups, : grouped.shape[1]] = grouped
    return filled.reshape(-1, *rest)


def _no_attention(
    layer: DeciLayer, query_heads: int, pruned: PrunedModel, head_dim: int
) -> dict[str, Tensor]:
    """An attention of zeros alone, which adds nothing."""
    config, dtype = pruned.dense.config, pruned.dense.dtype
    wide, narrow, hidden = query_heads * head_dim, layer.kv_heads * head_dim, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (wide, hidden),
        "k_proj.weight": (narrow, hidden),
        "v_proj.weight": (narrow, hidden),
        "o_proj.weight": (hidden, wide),
    }
    has_bias = getattr(config, "attention_bias", False)
    if has_bias or config.model_type == "qwen2":
        shapes |= {"q_proj.bias": (wide,), "k_proj.bias": (narrow,), "v_proj.bias": (narrow,)}
    if has_bias:
        shapes |= {"o_proj.bias": (hidden,)}
    zeros = {f"self_attn.{name}": torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    return zeros | {"input_layernorm.weight": torch.ones(hidden, dtype=dtype)}
