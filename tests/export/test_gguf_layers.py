"""What llama.cpp cannot load is replaced by zeros, or left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.export.gguf_architecture import (
    are_uniform,
    gguf_layers,
    head_dim_of,
    layer_tensors,
)
from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.slicing import cut_model


@pytest.fixture
def cut_of(tiny_model: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """A Llama without some sub-layers: `cut_of(0, "kv_group", 2, "mlp_channel")`."""

    def cut(*dropped: int | str, **overrides: object) -> PreTrainedModel:
        model = tiny_model("llama_gqa", **overrides)
        space = unit_layout_of(model, ["kv_group", "mlp_channel"])
        mask_U = torch.ones(space.num_units, dtype=torch.bool)
        space.view(mask_U, 1, "mlp_channel")[3] = False
        for layer, kind in zip(dropped[::2], dropped[1::2], strict=True):
            space.view(mask_U, layer, kind).fill_(False)
        return cut_model(model, space, mask_U)

    return cut


def sizes(model: PreTrainedModel, multiple: int = 1) -> list[tuple[int, int, int]]:
    layers = gguf_layers(model, multiple)
    return [(layer.query_heads, layer.kv_heads, layer.channels) for layer in layers]


def test_layers_keep_their_own_widths(cut_of: Callable[..., PreTrainedModel]) -> None:
    model = cut_of()
    assert sizes(model) == [(4, 2, 24), (4, 2, 23), (4, 2, 24)]
    assert not are_uniform(gguf_layers(model, 1))


def test_an_attention_may_be_missing_but_in_the_first_layer(
    cut_of: Callable[..., PreTrainedModel],
) -> None:
    model = cut_of(0, "kv_group", 2, "kv_group")
    assert sizes(model) == [(1, 1, 24), (4, 2, 23), (0, 0, 24)]


def test_a_missing_mlp_becomes_a_channel_of_zeros(cut_of: Callable[..., PreTrainedModel]) -> None:
    model = cut_of(2, "mlp_channel")
    layer = gguf_layers(model, 1)[2]
    tensors = dict(layer_tensors(layer, hidden_size=32, head_dim=8, interleaved=True))
    assert layer.channels == 1
    assert tensors["ffn_down.weight"].shape == (32, 1)
    assert tensors["ffn_gate.weight"].shape == (1, 32)
    assert not tensors["ffn_down.weight"].any()


def test_a_layer_with_nothing_left_is_left_out(cut_of: Callable[..., PreTrainedModel]) -> None:
    nothing = (0, "kv_group", 0, "mlp_channel", 1, "kv_group")
    assert sizes(cut_of(*nothing)) == [(1, 1, 23), (4, 2, 24)]
    everything = (*nothing, 1, "mlp_channel", 2, "kv_group", 2, "mlp_channel")
    assert sizes(cut_of(*everything)) == [(1, 1, 1)]


def test_channels_are_filled_up_with_zeros(cut_of: Callable[..., PreTrainedModel]) -> None:
    model = cut_of(2, "mlp_channel", mlp_bias=True)
    assert [layer.channels for layer in gguf_layers(model, 32)] == [32, 32, 32]
    layer = gguf_layers(model, 32)[1]
    tensors = dict(layer_tensors(layer, hidden_size=32, head_dim=8, interleaved=True))
    mlp = model.model.layers[1].mlp
    assert torch.equal(tensors["ffn_down.weight"][:, :23], mlp.down_proj.weight)
    assert torch.equal(tensors["ffn_up.bias"][:23], mlp.up_proj.bias)
    assert torch.equal(tensors["ffn_down.bias"], mlp.down_proj.bias)
    for name in ("ffn_gate.weight", "ffn_up.weight", "ffn_gate.bias", "ffn_up.bias"):
        assert tensors[name].shape[0] == 32
        assert not tensors[name][23:].any()


def test_halves_of_a_head_are_interleaved_for_llama_alone(
    cut_of: Callable[..., PreTrainedModel],
) -> None:
    model = cut_of()
    assert head_dim_of(model) == 8
    layer, weight = gguf_layers(model, 1)[0], model.model.layers[0].self_attn.k_proj.weight
    found = dict(layer_tensors(layer, hidden_size=32, head_dim=8, interleaved=True))
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(found["attn_k.weight"], weight[order + [8 + row for row in order]])
    plain = dict(layer_tensors(layer, hidden_size=32, head_dim=8, interleaved=False))
    assert torch.equal(plain["attn_k.weight"], weight)
    assert torch.equal(found["attn_v.weight"], plain["attn_v.weight"])
