"""Costs by hand; tests/masking/test_decoder_family.py compares all families with cut models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking import mask_space_of
from pgprune_lightning.policy import UnitGroup, UnitKind


def test_costs_of_a_grouped_llama(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """Hidden 32, MLP 24, 4 heads of 8 in 2 groups, no biases, vocabulary 97, head untied."""
    space = mask_space_of(tiny_model("llama_gqa"), ["kv_group", "mlp_channel"])
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
    space = mask_space_of(tiny_model("qwen3"), ["kv_group"])
    rows = 2 * 12 + 12 + 12
    assert space.groups[0].unit_cost == rows * (32 + 1) + 2 * 12 * 32
    assert space.groups[0].remnant_cost == 32 + 32 + 12 + 12  # norm, bias of o, q_norm, k_norm


def test_a_whole_layer_is_one_unit(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa")
    space = mask_space_of(model, ["layer"])
    parameters = sum(p.numel() for p in model.model.layers[0].parameters())
    assert space.groups == tuple(
        UnitGroup(layer, "layer", layer, 1, parameters, 0) for layer in range(3)
    )


def test_a_whole_sub_layer_is_one_unit_with_its_norm(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    model = tiny_model("qwen3")
    space = mask_space_of(model, ["attention", "mlp"])
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
        mask_space_of(model, ["kv_group", "mlp_channel"], channels).groups for channels in (1, 8)
    )
    assert bundled[:2] == (
        single[0],
        UnitGroup(0, "mlp_channel", 2, 24 // 8, 8 * single[1].unit_cost, single[1].remnant_cost),
    )


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
        mask_space_of(tiny_model("llama_gqa"), ["mlp_channel"], channels)


def test_units_of_channels_need_channels(tiny_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(UserError, match="mlp_channel is not among unit_kinds"):
        mask_space_of(tiny_model("llama_gqa"), ["kv_group"], 2)


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
        mask_space_of(tiny_model("llama_gqa"), unit_kinds)
