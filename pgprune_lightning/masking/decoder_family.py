"""Where each model family keeps the parts that a mask touches.

A family is one row of `FAMILIES`: the attribute names on the way from a decoder layer to its
projections. Everything that prunes, masks, measures or cuts goes through `decoder_layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.sub_layer import Attention, DecoderLayer, InputProjection, Mlp

Fused = tuple[str, tuple[str, ...]]
"""A projection's name, and what the rows of each of its parts are."""


@dataclass(frozen=True)
class DecoderFamily:
    """Attribute names of one family of decoder-only models.

    Projections into a sub-layer are given with their parts: `("q_proj", ("q",))` has the rows of
    queries alone, `("qkv_proj", ("q", "k", "v"))` those of all queries, then of all keys, then of
    all values, and `("query_key_value", ("qkv",))` all three of the first head, then of the next.

    Args:
        name: Name shown to users.
        model_types: Values of `config.model_type` that have this layout.
        decoder: Path from the model without its vocabulary projection to the module that has the
            layers.
        norms_in_front: The configuration's attribute that says whether norms stand in front of
            sub-layers; empty: they always do. In the residual stream they serve all that follows,
            and a layer cannot leave.
        attention: The module of the attention in a layer.
        attention_norms: Norms that serve the attention alone: the one in front, then the one
            behind where there is one.
        attention_inputs: The projections into the attention, and the parts of each.
        attention_output: The projection out of it.
        head_dim: The attention's attribute that holds the width of a head.
        head_counts: See `Attention`: attributes of the attention, and whether they count the heads
            of queries, `q`, or of keys and values, `k`.
        mlp: The module of the MLP in a layer; empty where its projections lie in the layer itself.
        mlp_norms: As for the attention.
        mlp_inputs: The projections into the MLP, and the parts of each.
        mlp_output: The projection out of it.
        mlp_width: The configuration's attribute that holds the MLP's width.
        needs_bos: Whether texts must begin with the BOS token, or perplexity is several times too
            high.
    """

    name: str
    model_types: tuple[str, ...]
    decoder: str = ""
    norms_in_front: str = ""
    attention: str = "self_attn"
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    attention_inputs: tuple[Fused, ...] = (
        ("q_proj", ("q",)),
        ("k_proj", ("k",)),
        ("v_proj", ("v",)),
    )
    attention_output: str = "o_proj"
    head_dim: str = "head_dim"
    head_counts: tuple[tuple[str, str], ...] = ()
    mlp: str = "mlp"
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    mlp_inputs: tuple[Fused, ...] = (("gate_proj", ("g",)), ("up_proj", ("u",)))
    mlp_output: str = "down_proj"
    mlp_width: str = "intermediate_size"
    needs_bos: bool = False


FAMILIES: tuple[DecoderFamily, ...] = (
    DecoderFamily("Llama", ("llama",)),
    DecoderFamily("Mistral", ("mistral",)),
    DecoderFamily("Qwen2", ("qwen2",)),
    DecoderFamily("Qwen3", ("qwen3",)),
    DecoderFamily("Gemma", ("gemma",), needs_bos=True),
    DecoderFamily(
        "Gemma 2 and 3",
        ("gemma2", "gemma3_text"),
        attention_norms=("input_layernorm", "post_attention_layernorm"),
        mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        needs_bos=True,
    ),
    DecoderFamily(
        "Phi-3",
        ("phi3",),
        attention_inputs=(("qkv_proj", ("q", "k", "v")),),
        head_counts=(("config.num_attention_heads", "q"), ("num_key_value_heads", "k")),
        mlp_inputs=(("gate_up_proj", ("g", "u")),),
    ),
    DecoderFamily(
        "OPT",
        ("opt",),
        decoder="decoder",
        norms_in_front="do_layer_norm_before",
        attention_norms=("self_attn_layer_norm",),
        attention_output="out_proj",
        head_counts=(("num_heads", "q"),),
        mlp="",
        mlp_norms=("final_layer_norm",),
        mlp_inputs=(("fc1", ("u",)),),
        mlp_output="fc2",
        mlp_width="ffn_dim",
    ),
    DecoderFamily(
        "GPT-NeoX",
        ("gpt_neox",),
        attention="attention",
        attention_inputs=(("query_key_value", ("qkv",)),),
        attention_output="dense",
        head_dim="head_size",
        mlp_inputs=(("dense_h_to_4h", ("u",)),),
        mlp_output="dense_4h_to_h",
    ),
)


def family_of(config: PreTrainedConfig) -> DecoderFamily:
    """Look up the family of a model by its configuration.

    Raises:
        UserError: If the family, or this variant of it, cannot be pruned; the message says what
            can.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            _refuse_norms_in_the_stream(family, config)
            return family
    text = config.get_text_config()
    if text is not config:
        raise UserError(
            f"base_model: models of type {config.model_type!r} are multimodal and cannot be pruned "
            f"here. Give the text-only checkpoint of its language model, of type "
            f"{text.model_type!r}."
        )
    raise UserError(
        f"base_model: models of type {config.model_type!r} cannot be pruned here. "
        f"Families that can: {family_names()} (and models that share their layout, such as Vicuna)."
    )


def layout_of(model_type: str) -> DecoderFamily | None:
    """The family whose layout a model has, which need not be one that can be pruned (again).

    Args:
        model_type: The configuration's; that of a pruned model is its family's behind `pruned_`.
    """
    name = model_type.removeprefix("pruned_")
    return next((family for family in FAMILIES if name in family.model_types), None)


def _refuse_norms_in_the_stream(family: DecoderFamily, config: PreTrainedConfig) -> None:
    if family.norms_in_front and not getattr(config, family.norms_in_front):
        raise UserError(
            f"base_model: of {family.name} models, those with {family.norms_in_front} false (such "
            "as opt-350m) cannot be pruned here: their norms stand in the residual stream. Give a "
            "model of another size."
        )


def family_names() -> str:
    """The families that can be pruned, for messages."""
    return ", ".join(family.name for family in FAMILIES)


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The model without its vocabulary projection: embeddings, `layers`, and a last norm."""
    base = getattr(model, model.base_model_prefix)
    assert isinstance(base, nn.Module)
    layout = layout_of(model.config.model_type)
    return base if layout is None else base.get_submodule(layout.decoder)


def decoder_layers(model: PreTrainedModel) -> list[DecoderLayer]:
    """Describe the decoder layers of a model, in order.

    Args:
        model: A causal language model of one of `FAMILIES`; meta tensors will do.
    """
    family = family_of(model.config)
    modules = backbone_of(model).get_submodule("layers").children()
    return [
        DecoderLayer(index, module, _attention(family, module), _mlp(family, module))
        for index, module in enumerate(modules)
    ]


def _attention(family: DecoderFamily, layer: nn.Module) -> Attention:
    module = layer.get_submodule(family.attention)
    norms = tuple(layer.get_submodule(name) for name in family.attention_norms)
    head_dim: int = getattr(module, family.head_dim)
    # Query heads that share a key-value head; as many as there are where none are shared.
    heads = {"q": getattr(module, "num_key_value_groups", 1), "k": 1, "v": 1}
    rows = {role: count * head_dim for role, count in heads.items()}
    inputs = _inputs(module, family.attention_inputs, rows)
    output = _linear(module, family.attention_output)
    return Attention(
        module=module,
        norms=norms,
        inputs=inputs,
        output=output,
        last=norms[1] if len(norms) > 1 else output,
        num_kv_groups=output.in_features // rows["q"],
        head_dim=head_dim,
        head_counts={name: heads[role] for name, role in family.head_counts},
    )


def _mlp(family: DecoderFamily, layer: nn.Module) -> Mlp:
    module = layer.get_submodule(family.mlp)
    norms = tuple(layer.get_submodule(name) for name in family.mlp_norms)
    output = _linear(module, family.mlp_output)
    return Mlp(
        module=module if family.mlp else None,
        norms=norms,
        inputs=_inputs(module, family.mlp_inputs, {"g": 1, "u": 1}),
        output=output,
        last=norms[1] if len(norms) > 1 else output,
    )


def _inputs(
    parent: nn.Module, projections: tuple[Fused, ...], rows: dict[str, int]
) -> tuple[InputProjection, ...]:
    """Find projections, and the rows of their parts by those of a unit in each role."""
    described = []
    for name, roles_by_part in projections:
        linear = _linear(parent, name)
        of_unit = [sum(rows[role] for role in roles) for roles in roles_by_part]
        num_units = linear.out_features // sum(of_unit)
        described.append(InputProjection(linear, tuple(width * num_units for width in of_unit)))
    return tuple(described)


def supported_attention(config: PreTrainedConfig, attention: str) -> str:
    """The attention implementation to use: the one that is asked for, or `eager` in place of sdpa.

    Models that cap attention logits, such as Gemma 2, cannot use sdpa.

    Args:
        config: The model's configuration.
        attention: Attention implementation of transformers.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "eager" if attention == "sdpa" and not model_class._supports_sdpa else attention


def _linear(parent: nn.Module, name: str) -> nn.Linear:
    module = parent.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise UserError(
            f"base_model: {name} is a {type(module).__name__}, not a plain Linear layer; "
            "quantised models must be loaded dequantised to be pruned."
        )
    return module
