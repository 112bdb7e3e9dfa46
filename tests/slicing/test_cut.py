"""A cut model stands on its own; tests/masking/test_decoder_family.py compares it with the mask.

Shapes: U units, B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking import unit_layout_of
from pgprune_lightning.policy import UnitKind
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import masks_of, random_tokens


@torch.no_grad()
def cached_logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """Logits of a prompt, then of four tokens at once, then of one at a time."""
    cache, parts = None, []
    for tokens in tokens_BT.split([10, 4, 1, 1, 1, 1, 1, 1], dim=1):
        output = model(tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    return torch.cat(parts, dim=1)


def test_the_cache_changes_no_logit(family_model: PreTrainedModel, units: dict[str, Any]) -> None:
    """Dropped layers and emptied attentions shift places in the cache, by which it counts."""
    space = unit_layout_of(family_model, **units)
    tokens_BT = random_tokens(tokens=20)
    for name, mask_U in masks_of(space):
        cut = cut_model(family_model, space, mask_U)
        with torch.no_grad():
            expected = cut(tokens_BT, use_cache=False).logits
        assert torch.allclose(cached_logits(cut, tokens_BT), expected, atol=1e-4), name


@pytest.mark.parametrize("unit_kind", ["kv_group", "attention", "layer"])
def test_generates_the_same_tokens_with_and_without_a_cache(
    family_model: PreTrainedModel, continuation: Callable[..., Tensor], unit_kind: UnitKind
) -> None:
    space = unit_layout_of(family_model, [unit_kind])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.7
    space.view(mask_U, 0, unit_kind).fill_(False)
    cut = cut_model(family_model, space, mask_U)
    with_cache, without_cache = (continuation(cut, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without_cache)


def test_the_dense_model_is_not_changed(
    family_model: PreTrainedModel, units: dict[str, Any]
) -> None:
    before = {name: value.clone() for name, value in family_model.named_parameters()}
    space = unit_layout_of(family_model, **units)
    cut = cut_model(family_model, space, torch.zeros(space.num_units, dtype=torch.bool))
    for parameter in cut.parameters():
        parameter.zero_()
    assert family_model.config.num_hidden_layers == 3
    for name, value in family_model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_what_is_left_is_what_the_mask_keeps(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_gqa")
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.ones(space.num_units, dtype=torch.bool)
    space.view(mask_U, 1, "kv_group")[0] = False
    space.view(mask_U, 2, "mlp_channel")[5:].fill_(False)
    cut, layers = cut_model(model, space, mask_U), model.model.layers
    attention, mlp = cut.model.layers[1].self_attn, cut.model.layers[2].mlp
    assert torch.equal(attention.q_proj.weight, layers[1].self_attn.q_proj.weight[16:])
    assert torch.equal(attention.v_proj.weight, layers[1].self_attn.v_proj.weight[8:])
    assert torch.equal(attention.o_proj.weight, layers[1].self_attn.o_proj.weight[:, 16:])
    assert torch.equal(mlp.down_proj.weight, layers[2].mlp.down_proj.weight[:, :5])
    assert mlp.down_proj.in_features == mlp.up_proj.out_features == 5
    assert not any(parameter.requires_grad for parameter in cut.parameters())


def test_dropped_layers_leave_the_configuration(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("qwen2_mixed")
    space = unit_layout_of(model, ["layer"])
    cut = cut_model(model, space, torch.tensor([False, True, True]))
    assert cut.config.num_hidden_layers == 2
    assert cut.config.layer_types == model.config.layer_types[1:]
    assert [layer.self_attn.layer_idx for layer in cut.model.layers] == [0, 1]
