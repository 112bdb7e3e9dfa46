"""Where each model family keeps the parts that a mask touches.

A family is one row of `FAMILIES`: the attribute names on the way from a decoder layer to its
projections. Everything that prunes, masks, measures or cuts goes through `decoder_layers`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pgprune_lightning.errors import UserError


@dataclass(frozen=True)
class DecoderFamily:
    """Attribute names of one family of decoder-only models with gated MLPs.

    Args:
        name: Name shown to users.
        model_types: Values of `config.model_type` that have this layout.
    """

    name: str
    model_types: tuple[str, ...]
    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    attention_output: str = "o_proj"
    mlp: str = "mlp"
    mlp_norm: str = "post_attention_layernorm"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


FAMILIES: tuple[DecoderFamily, ...] = (
    DecoderFamily("Llama", ("llama",)),
    DecoderFamily("Mistral", ("mistral",)),
    DecoderFamily("Qwen2", ("qwen2",)),
    DecoderFamily("Qwen3", ("qwen3",)),
)


@dataclass(frozen=True)
class Attention:
    """The attention of one layer; its unit is a KV group: a key-value head and its query heads."""

    module: nn.Module
    norm: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    head_dim: int

    @property
    def num_kv_groups(self) -> int:
        """Number of key-value heads."""
        return self.key.out_features // self.head_dim

    @property
    def group_width(self) -> int:
        """Columns of the output projection that belong to one KV group."""
        return self.query.out_features // self.num_kv_groups


@dataclass(frozen=True)
class Mlp:
    """The gated MLP of one layer; its unit is a channel of the intermediate activation."""

    module: nn.Module
    norm: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    @property
    def num_channels(self) -> int:
        """Width of the intermediate activation."""
        return self.down.in_features


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer and its two sub-layers."""

    index: int
    module: nn.Module
    attention: Attention
    mlp: Mlp


def family_of(config: PreTrainedConfig) -> DecoderFamily:
    """Look up the family of a model by its configuration.

    Raises:
        UserError: If the family cannot be pruned; the message names those that can.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    raise UserError(
        f"base_model: models of type {config.model_type!r} cannot be pruned here. "
        f"Families that can: {family_names()} (and models that share their layout, such as Vicuna)."
    )


def family_names() -> str:
    """The families that can be pruned, for messages."""
    return ", ".join(family.name for family in FAMILIES)


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The model without its vocabulary projection."""
    backbone = getattr(model, model.base_model_prefix)
    assert isinstance(backbone, nn.Module)
    return backbone


def decoder_layers(model: PreTrainedModel) -> list[DecoderLayer]:
    """Describe the decoder layers of a model, in order.

    Args:
        model: A causal language model of one of `FAMILIES`; meta tensors will do.
    """
    family = family_of(model.config)
    modules = backbone_of(model).get_submodule("layers").children()
    return [_describe_layer(family, index, module) for index, module in enumerate(modules)]


def _describe_layer(family: DecoderFamily, index: int, module: nn.Module) -> DecoderLayer:
    attention = module.get_submodule(family.attention)
    mlp = module.get_submodule(family.mlp)
    return DecoderLayer(
        index=index,
        module=module,
        attention=Attention(
            module=attention,
            norm=module.get_submodule(family.attention_norm),
            query=_linear(attention, family.query),
            key=_linear(attention, family.key),
            value=_linear(attention, family.value),
            output=_linear(attention, family.attention_output),
            head_dim=int(attention.head_dim),  # type: ignore[arg-type]
        ),
        mlp=Mlp(
            module=mlp,
            norm=module.get_submodule(family.mlp_norm),
            gate=_linear(mlp, family.gate),
            up=_linear(mlp, family.up),
            down=_linear(mlp, family.down),
        ),
    )


def _linear(parent: nn.Module, name: str) -> nn.Linear:
    module = parent.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise UserError(
            f"base_model: {name} is a {type(module).__name__}, not a plain Linear layer; "
            "quantised models must be loaded dequantised to be pruned."
        )
    return module
