"""The model is only lent to a mask: outside the block nothing of it is left.

Shapes: U units, B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune_lightning.masking import DenseMaskedExecution, token_nll, unit_layout_of
from pgprune_lightning.policy import UnitKind, UnitLayout
from tests.tiny_models import masks_of, random_tokens, traces_of_masking


@pytest.fixture
def model(tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny_model("llama_biased")


@pytest.fixture
def space(model: PreTrainedModel) -> UnitLayout:
    return unit_layout_of(model, ["kv_group", "mlp_channel"])


def emptied_mask(space: UnitLayout, layer: int, kind: UnitKind) -> Tensor:
    mask_U = torch.ones(space.num_units, dtype=torch.bool)
    space.view(mask_U, layer, kind).fill_(False)
    return mask_U


def test_the_model_is_untouched_after_the_block(
    family_model: PreTrainedModel, units: dict[str, Any]
) -> None:
    space = unit_layout_of(family_model, **units)
    before = token_nll(family_model, random_tokens())
    weights = {name: value.clone() for name, value in family_model.state_dict().items()}
    assert not traces_of_masking(family_model)
    for name, mask_U in masks_of(space):
        with DenseMaskedExecution(family_model, space).masked(mask_U) as masked:
            # Without this the test would pass on masks that never touch the model.
            touched = bool(traces_of_masking(masked))
            token_nll(masked, random_tokens())
        assert touched == (not mask_U.all()), name
        assert not traces_of_masking(family_model), name
        assert torch.equal(token_nll(family_model, random_tokens()), before), name
    for name, value in family_model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_an_exception_in_the_block_leaves_nothing_behind(
    model: PreTrainedModel, space: UnitLayout
) -> None:
    mask_U = emptied_mask(space, 1, "kv_group") & emptied_mask(space, 2, "mlp_channel")
    mask_U[0] = False
    with (
        pytest.raises(RuntimeError, match="inside"),
        DenseMaskedExecution(model, space).masked(mask_U),
    ):
        raise RuntimeError("inside")
    assert not traces_of_masking(model)


def test_nested_masks_keep_what_both_keep(model: PreTrainedModel, space: UnitLayout) -> None:
    execution = DenseMaskedExecution(model, space)
    outer_U = emptied_mask(space, 1, "kv_group")
    inner_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.6
    tokens_BT = random_tokens()
    with execution.masked(outer_U & inner_U) as masked:
        both = token_nll(masked, tokens_BT)
    with execution.masked(outer_U) as masked:
        outer_alone = token_nll(masked, tokens_BT)
        with execution.masked(inner_U) as twice_masked:
            torch.testing.assert_close(token_nll(twice_masked, tokens_BT), both)
        assert torch.equal(token_nll(masked, tokens_BT), outer_alone)
    assert not traces_of_masking(model)


@pytest.mark.parametrize("kind", ["kv_group", "mlp_channel"])
def test_an_emptied_sub_layer_adds_not_even_its_bias(
    model: PreTrainedModel, space: UnitLayout, kind: UnitKind
) -> None:
    layer = model.model.layers[1]
    sub_layer = layer.self_attn if kind == "kv_group" else layer.mlp
    output = sub_layer.o_proj if kind == "kv_group" else sub_layer.down_proj
    assert output.bias.any()
    with torch.no_grad(), DenseMaskedExecution(model, space).masked(emptied_mask(space, 1, kind)):
        added = sub_layer(torch.ones(1, 3, 32))
    assert not (added[0] if kind == "kv_group" else added).any()


def test_a_mask_of_another_length_is_refused(model: PreTrainedModel, space: UnitLayout) -> None:
    too_short_U = torch.zeros(space.num_units - 1, dtype=torch.bool)
    with pytest.raises(AssertionError), DenseMaskedExecution(model, space).masked(too_short_U):
        pass
    assert not traces_of_masking(model)
