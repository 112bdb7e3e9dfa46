"""Which rows of a projection belong to a unit, by hand, and counts of heads that come and go.

Shapes: K kept units.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pgprune_lightning.masking import decoder_layers
from pgprune_lightning.masking.sub_layer import InputProjection


@pytest.mark.parametrize(
    ("parts", "num_units", "rows"),
    [
        ((12,), 3, [0, 1, 2, 3, 8, 9, 10, 11]),  # of its own, or fused head by head
        ((6, 3, 3), 3, [0, 1, 4, 5, 6, 8, 9, 11]),  # two query heads share a key and a value
        ((6, 6), 6, [0, 2, 6, 8]),  # gate and up
        ((6, 6), 3, [0, 1, 4, 5, 6, 7, 10, 11]),  # two channels a unit
    ],
    ids=["one part", "queries, keys, values", "gate and up", "bundles"],
)
def test_rows_of_the_first_and_the_third_unit(
    parts: tuple[int, ...], num_units: int, rows: list[int]
) -> None:
    projection = InputProjection(nn.Linear(2, 12), parts)
    assert projection.rows_of(torch.tensor([0, 2]), num_units).tolist() == rows


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llama_gqa", [(32,), (16,), (16,), (24,), (24,)]),
        ("phi3", [(32, 16, 16), (24, 24)]),
        ("opt", [(32,), (32,), (32,), (24,)]),
        ("gpt_neox", [(96,), (24,)]),
    ],
)
def test_parts_of_each_familys_projections(
    tiny_model: Callable[..., PreTrainedModel], name: str, parts: list[tuple[int, ...]]
) -> None:
    """Hidden 32, heads of 8, MLP 24."""
    layer = decoder_layers(tiny_model(name))[1]
    projections = [*layer.attention.inputs, *layer.mlp.inputs]
    assert [projection.parts for projection in projections] == parts


def test_heads_are_counted_for_one_layer_and_for_a_while(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    model = tiny_model("phi3")
    first, second, _ = decoder_layers(model)
    module = first.attention.module
    with first.attention.narrowed(1):
        assert (module.config.num_attention_heads, module.num_key_value_heads) == (2, 1)
        assert second.attention.module.config.num_attention_heads == 4
        assert model.config.num_attention_heads == 4
    assert (module.config.num_attention_heads, module.num_key_value_heads) == (4, 2)
    assert module.config is model.config
