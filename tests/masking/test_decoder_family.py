"""The suite that every family passes, with every choice of units and masks that empty groups.

A new family is one row of `CONFIGS` in tests/tiny_models.py.

Shapes: U units, B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, OPTConfig, PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking import (
    DenseMaskedExecution,
    decoder_layers,
    token_nll,
    unit_layout_of,
)
from pgprune_lightning.masking.decoder_family import FAMILIES, backbone_of, family_of
from pgprune_lightning.masking.frozen_model import model_on_meta
from pgprune_lightning.policy import UnitLayout
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import CONFIGS, make_tiny_model, masks_of, random_tokens

# Logits have a standard deviation of about 1 and reach 4. Cutting reorders sums, no more; there one
# unit in the last place is 2e-7 in float32 and 0.016 in bfloat16.
FLOAT32_TOLERANCE = 1e-5
BFLOAT16_TOLERANCE = 0.1

OUTPUT_NAMES = ("o_proj", "out_proj", "dense", "down_proj", "fc2", "dense_4h_to_h")


def logits_of(model: PreTrainedModel, input_ids_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids_BT, use_cache=False).logits.float()


def masked_logits(model: PreTrainedModel, space: UnitLayout, mask_U: Tensor) -> Tensor:
    with DenseMaskedExecution(model, space).masked(mask_U) as masked:
        return logits_of(masked, random_tokens())


def assert_close(actual: Tensor, expected: Tensor, mask_name: str, tolerance: float) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tolerance, msg=lambda message: f"{mask_name}: {message}"
    )


def zeroed_copy(model: PreTrainedModel, space: UnitLayout, mask_U: Tensor) -> PreTrainedModel:
    """The slow and obvious way: write zeros into the weights that read a dropped unit."""
    reference = copy.deepcopy(model)
    projections = output_projections(reference)
    for unit in range(space.num_units):
        layer, kind, index = space.locate(unit)
        output, down = projections[layer]
        if mask_U[unit]:
            continue
        if kind in ("kv_group", "mlp_channel"):
            linear = output if kind == "kv_group" else down
            width = linear.in_features // space.group(layer, kind).count
            linear.weight[:, index * width : (index + 1) * width] = 0
        if kind in ("attention", "layer"):
            output.weight.zero_()
        if kind in ("mlp", "layer"):
            down.weight.zero_()
    for projection in (linear for pair in projections for linear in pair):
        if projection.bias is not None and not projection.weight.any():
            projection.bias.zero_()
    return reference


def output_projections(model: PreTrainedModel) -> list[tuple[nn.Linear, nn.Linear]]:
    """Each layer's projections out of its attention and out of its MLP, by their names."""
    linears = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in OUTPUT_NAMES and isinstance(module, nn.Linear)
    ]
    return list(zip(linears[::2], linears[1::2], strict=True))


def test_every_family_is_in_the_suite() -> None:
    tested = {row["model_type"] for row in CONFIGS.values()}
    assert tested == {model_type for family in FAMILIES for model_type in family.model_types}


def test_all_ones_is_the_untouched_model(
    family_model: PreTrainedModel, units: dict[str, Any]
) -> None:
    tokens_BT = random_tokens()
    space = unit_layout_of(family_model, **units)
    ones_U = torch.ones(space.num_units, dtype=torch.bool)
    plain, plain_nll = logits_of(family_model, tokens_BT), token_nll(family_model, tokens_BT)
    with DenseMaskedExecution(family_model, space).masked(ones_U) as masked:
        assert torch.equal(logits_of(masked, tokens_BT), plain)
        assert torch.equal(token_nll(masked, tokens_BT), plain_nll)


def test_masked_equals_zeroed_weights(family_model: PreTrainedModel, units: dict[str, Any]) -> None:
    space = unit_layout_of(family_model, **units)
    for name, mask_U in masks_of(space):
        reference = zeroed_copy(family_model, space, mask_U)
        expected = logits_of(reference, random_tokens())
        assert_close(masked_logits(family_model, space, mask_U), expected, name, FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, FLOAT32_TOLERANCE), (torch.bfloat16, BFLOAT16_TOLERANCE)],
    ids=["float32", "bfloat16"],
)
def test_masked_equals_cut(
    family_model: PreTrainedModel,
    units: dict[str, Any],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = copy.deepcopy(family_model).to(dtype)
    space = unit_layout_of(model, **units)
    for name, mask_U in masks_of(space):
        cut = cut_model(model, space, mask_U)
        expected = masked_logits(model, space, mask_U)
        assert_close(logits_of(cut, random_tokens()), expected, name, tolerance)


def test_kept_parameters_is_what_the_cut_model_has(
    family_model: PreTrainedModel, units: dict[str, Any]
) -> None:
    space = unit_layout_of(family_model, **units)
    assert space.total_parameters == family_model.num_parameters()
    for name, mask_U in masks_of(space):
        cut = cut_model(family_model, space, mask_U)
        assert space.kept_parameters(mask_U) == cut.num_parameters(), name


def test_units_are_known_before_the_weights(
    family_model: PreTrainedModel, units: dict[str, Any]
) -> None:
    shape_only = model_on_meta(family_model.config)
    assert next(shape_only.parameters()).is_meta
    assert unit_layout_of(shape_only, **units) == unit_layout_of(family_model, **units)


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_implementations_agree(name: str, units: dict[str, Any]) -> None:
    fused, eager = (make_tiny_model(name, attention) for attention in ("sdpa", "eager"))
    space = unit_layout_of(fused, **units)
    for mask_name, mask_U in masks_of(space):
        expected = masked_logits(eager, space, mask_U)
        assert_close(masked_logits(fused, space, mask_U), expected, mask_name, FLOAT32_TOLERANCE)


def test_layers_are_described_in_order(family_model: PreTrainedModel) -> None:
    config = family_model.config
    layers = decoder_layers(family_model)
    assert [layer.index for layer in layers] == [0, 1, 2]
    for layer in layers:
        assert layer.module is backbone_of(family_model).layers[layer.index]
        assert layer.attention.num_kv_groups == getattr(config, "num_key_value_heads", 4)
        assert layer.mlp.num_channels == 24


def test_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'bloom'.*Llama, Mistral, Qwen2, Qwen3"):
        family_of(BloomConfig())


def test_norms_in_the_residual_stream_are_refused() -> None:
    with pytest.raises(UserError, match=r"do_layer_norm_before false .* cannot be pruned"):
        family_of(OPTConfig(do_layer_norm_before=False))


def test_packed_weights_are_refused() -> None:
    model = make_tiny_model("llama_gqa")
    model.model.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(UserError, match=r"up_proj is a Identity.*dequantised"):
        decoder_layers(model)
