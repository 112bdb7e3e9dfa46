"""Costs by hand; tests/masking/test_decoder_family.py compares all families with cut models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.masking.frozen_model import model_on_meta
from pgprune_lightning.policy import UnitGroup, UnitKind, UnitLayout


def test_costs_of_a_grouped_llama(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """Hidden 32, MLP 24, 4 heads of 8 in 2 groups, no biases, vocabulary 97, head untied."""
    space = unit_layout_of(tiny_model("llama_gqa"), ["kv_group", "mlp_channel"])
    group = 2 * 8 * 32 + 8 * 32 + 8 * 32 + 2 * 8 * 32  # q, k, v rows; o columns
    channel = 32 + 32 + 32  # gate and up row; down column
    assert space.groups[:3] == (
        UnitGroup(0, "kv_group", 0, 2, group, 32),  # the norm leaves with the last group
        UnitGroup(0, "mlp_channel", 2, 24, channel, 32),
        UnitGroup(1, "kv_group", 26, 2, group, 32),
    )
    assert space.num_units == 3 * (2 + 24)
    assert space.total_parameters == 2 * 97 * 32 + 3 * (2 * group + 24 * channel + 64) + 32


def test_costs_of_biases_and_head_norms(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """Qwen3 with heads of 12: q, k, v and o have biases, q_norm and k_norm serve all heads."""
    space = unit_layout_of(tiny_model("qwen3"), ["kv_group"])
    rows = 2 * 12 + 12 + 12
    assert space.groups[0].unit_cost == rows * (32 + 1) + 2 * 12 * 32
    assert space.groups[0].remnant_cost == 32 + 32 + 12 + 12  # norm, bias of o, q_norm, k_norm


def test_a_whole_layer_is_one_unit(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa")
    space = unit_layout_of(model, ["layer"])
    parameters = sum(p.numel() for p in model.model.layers[0].parameters())
    assert space.groups == tuple(
        UnitGroup(layer, "layer", layer, 1, parameters, 0) for layer in range(3)
    )


def test_a_whole_sub_layer_is_one_unit_with_its_norm(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    model = tiny_model("qwen3")
    space = unit_layout_of(model, ["attention", "mlp"])
    layer = model.model.layers[0]
    attention, mlp = (
        sum(p.numel() for module in modules for p in module.parameters())
        for modules in (
            (layer.self_attn, layer.input_layernorm),
            (layer.mlp, layer.post_attention_layernorm),
        )
    )
    assert space.groups[:3] == (
        UnitGroup(0, "attention", 0, 1, attention, 0),
        UnitGroup(0, "mlp", 1, 1, mlp, 0),
        UnitGroup(1, "attention", 2, 1, attention, 0),
    )


def test_neighbouring_channels_are_one_unit(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa")
    single, bundled = (
        unit_layout_of(model, ["kv_group", "mlp_channel"], channels).groups for channels in (1, 8)
    )
    assert bundled[:2] == (
        single[0],
        UnitGroup(0, "mlp_channel", 2, 24 // 8, 8 * single[1].unit_cost, single[1].remnant_cost),
    )


PUBLISHED: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    "gemma-2b": (
        {"model_type": "gemma", "num_hidden_layers": 18, "hidden_size": 2048}
        | {"num_attention_heads": 8, "num_key_value_heads": 1, "intermediate_size": 16_384},
        2_506_172_416,
        (1, 16_384),
    ),
    "gemma-2-2b": ({"model_type": "gemma2"}, 2_614_341_888, (4, 9216)),
    "gemma-3-1b": (
        {"model_type": "gemma3_text", "num_hidden_layers": 26, "hidden_size": 1152}
        | {"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 6912}
        | {"vocab_size": 262_144},
        999_885_952,
        (1, 6912),
    ),
    "Phi-3-mini": ({"model_type": "phi3"}, 3_821_079_552, (32, 8192)),
    "Phi-3-medium": (
        {"model_type": "phi3", "num_hidden_layers": 40, "hidden_size": 5120}
        | {"num_attention_heads": 40, "num_key_value_heads": 10, "intermediate_size": 17_920},
        13_960_238_080,
        (10, 17_920),
    ),
    "opt-125m": ({"model_type": "opt"}, 125_239_296, (12, 3072)),
    "pythia-160m": (
        {"model_type": "gpt_neox", "num_hidden_layers": 12, "hidden_size": 768}
        | {"num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 50_304},
        162_322_944,
        (12, 3072),
    ),
}
"""What config.json of each says beside its type's defaults; parameters; KV groups and channels."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_sizes(name: str) -> None:
    options, parameters, counts = PUBLISHED[name]
    space = unit_layout_of(
        model_on_meta(AutoConfig.for_model(**options)), ["kv_group", "mlp_channel"]
    )
    assert space.total_parameters == parameters
    assert {(first.count, second.count) for first, second in by_layer(space)} == {counts}


def by_layer(space: UnitLayout) -> list[tuple[UnitGroup, UnitGroup]]:
    return list(zip(space.groups[::2], space.groups[1::2], strict=True))


def test_costs_of_fused_projections_and_a_second_norm(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    """Hidden 32, MLP 24, 4 heads of 8: fused rows cost what they would apart."""
    kinds: list[UnitKind] = ["kv_group", "mlp_channel"]
    spaces = {
        name: unit_layout_of(tiny_model(name), kinds)
        for name in ("llama_gqa", "phi3", "gemma2", "opt", "gpt_neox")
    }
    assert spaces["phi3"].groups == spaces["llama_gqa"].groups
    heads = 2 * 12 + 12 + 12 + 2 * 12  # of 12: rows of q, k, v; columns of o
    assert spaces["gemma2"].groups[0] == UnitGroup(0, "kv_group", 0, 2, heads * 32, 2 * 32)
    for name in ("opt", "gpt_neox"):
        # Rows with their biases; biases of what adds to the stream leave last, with the norm's two.
        attention = UnitGroup(0, "kv_group", 0, 4, 8 * (3 * 33 + 32), 32 + 2 * 32)
        mlp = UnitGroup(0, "mlp_channel", 4, 24, 33 + 32, 32 + 2 * 32)
        assert spaces[name].groups[:2] == (attention, mlp)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (9, "9 does not divide the MLP's 24 channels; the nearest that does is 8 or 12"),
        (25, "is 24"),
        (0, "is 1"),
        (-4, "is 1"),
    ],
)
def test_channels_that_do_not_divide_are_refused(
    tiny_model: Callable[..., PreTrainedModel], channels: int, message: str
) -> None:
    with pytest.raises(UserError, match=f"channels_per_unit: .*{message}"):
        unit_layout_of(tiny_model("llama_gqa"), ["mlp_channel"], channels)


def test_units_of_channels_need_channels(tiny_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(UserError, match=r"mlp_channel is not among units\.kinds"):
        unit_layout_of(tiny_model("llama_gqa"), ["kv_group"], 2)


@pytest.mark.parametrize(
    ("unit_kinds", "message"),
    [
        ([], "at least one"),
        (["kv_group", "kv_group"], "different kinds"),
        (["layer", "mlp_channel"], "parts of; use"),
        (["layer", "attention"], "parts of; use"),
        (["attention", "kv_group"], "parts of; use"),
        (["attention", "mlp_channel"], "parts of; use"),
    ],
)
def test_impossible_kinds_are_refused(
    tiny_model: Callable[..., PreTrainedModel], unit_kinds: list[UnitKind], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        unit_layout_of(tiny_model("llama_gqa"), unit_kinds)
