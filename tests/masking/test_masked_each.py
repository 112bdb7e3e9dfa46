"""Each sequence of a batch under its own mask equals that sequence alone under that mask.

Shapes: U units, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.masking import DenseMaskedExecution, token_nll, unit_layout_of
from tests.tiny_models import masks_of, random_tokens


def test_each_sequence_has_its_own_mask(
    family_model: PreTrainedModel, units: dict[str, Any]
) -> None:
    """The masks empty each group in some sequence, and one keeps everything."""
    space = unit_layout_of(family_model, **units)
    execution = DenseMaskedExecution(family_model, space)
    masks_BU = torch.stack([mask_U for _, mask_U in masks_of(space)])
    tokens_BT = random_tokens(rows=len(masks_BU))
    with execution.masked_each(masks_BU) as masked:
        together_BT = token_nll(masked, tokens_BT)
    for tokens_T, mask_U, nll_T in zip(tokens_BT, masks_BU, together_BT, strict=True):
        with execution.masked(mask_U) as masked:
            alone_BT = token_nll(masked, tokens_T[None])
        torch.testing.assert_close(nll_T, alone_BT[0], rtol=0, atol=1e-5)


def test_what_no_sequence_keeps_is_skipped(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model("llama_biased")
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    masks_BU = torch.ones(2, space.num_units, dtype=torch.bool)
    space.view(masks_BU, 0, "kv_group")[0] = False
    space.view(masks_BU, 1, "kv_group")[:] = False
    calls: list[int] = []
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_hook(lambda *_, index=index: calls.append(index))
    with DenseMaskedExecution(model, space).masked_each(masks_BU) as masked:
        token_nll(masked, random_tokens())
    assert calls == [0, 2]


@pytest.mark.parametrize("rows", [1, 3])
def test_one_mask_is_for_every_sequence(
    tiny_model: Callable[..., PreTrainedModel], rows: int
) -> None:
    model = tiny_model("llama_gqa")
    space = unit_layout_of(model, ["kv_group", "mlp_channel"])
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(0)) < 0.5
    execution, tokens_BT = DenseMaskedExecution(model, space), random_tokens(rows=rows)
    with execution.masked(mask_U) as masked:
        expected = token_nll(masked, tokens_BT)
    with execution.masked_each(mask_U.expand(rows, -1)) as masked:
        assert torch.equal(token_nll(masked, tokens_BT), expected)
