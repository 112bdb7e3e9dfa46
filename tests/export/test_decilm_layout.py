"""Heads of zeros are as few as can be, and what cannot be told to vLLM is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedModel

from pgprune_lightning.export.decilm_layout import decilm_layout, decilm_obstacle
from pgprune_lightning.export.widths import LayerWidths


def layout_of(
    groups: Sequence[int], *, query_heads: int, kv_heads: int, channels: Sequence[int] = ()
) -> tuple[int, list[int], list[int | None]]:
    """Query heads, key-value heads by layer, and the layer that each holds."""
    config = LlamaConfig(
        hidden_size=query_heads * 8, num_attention_heads=query_heads, num_key_value_heads=kv_heads
    )
    widths = [
        LayerWidths(10 + place, count, count * query_heads // kv_heads, width)
        for place, (count, width) in enumerate(
            zip(groups, channels or [5] * len(groups), strict=True)
        )
    ]
    layout = decilm_layout(config, widths)
    layers = layout.layers
    return (
        layout.query_heads,
        [layer.kv_heads for layer in layers],
        [layer.source for layer in layers],
    )


def test_a_dense_model_keeps_its_heads() -> None:
    assert layout_of([3, 3], query_heads=9, kv_heads=3) == (9, [3, 3], [0, 1])


def test_equal_layers_need_no_zeros() -> None:
    assert layout_of([2, 2], query_heads=9, kv_heads=3) == (6, [2, 2], [0, 1])


def test_key_value_heads_are_filled_up_to_a_divisor() -> None:
    # Two groups of nine query heads would leave one over; three of ten as well.
    assert layout_of([3, 2, 1], query_heads=9, kv_heads=3) == (9, [3, 3, 1], [0, 1, 2])


def test_the_first_layer_always_has_an_attention() -> None:
    assert layout_of([0, 2, 0], query_heads=8, kv_heads=4) == (4, [1, 2, 0], [0, 1, 2])


def test_a_layer_with_nothing_left_is_left_out() -> None:
    found = layout_of([0, 0, 2], query_heads=8, kv_heads=4, channels=[0, 3, 0])
    assert found == (4, [1, 2], [1, 2])
    nothing = layout_of([0, 0], query_heads=8, kv_heads=4, channels=[0, 0])
    assert nothing == (2, [1], [None])


@pytest.mark.parametrize("groups", [[5, 7, 8], [1, 3, 6], [5, 5, 7], [7, 1, 0, 2], [3, 5]])
@pytest.mark.parametrize("kv_heads", [8, 12])
@pytest.mark.parametrize("in_group", [1, 2, 3])
def test_no_choice_of_heads_is_cheaper(groups: list[int], kv_heads: int, in_group: int) -> None:
    query_heads, filled, _ = layout_of(groups, query_heads=kv_heads * in_group, kv_heads=kv_heads)
    costs = []
    for heads in range(1, kv_heads * in_group + 1):
        fits = [
            [d for d in range(1, heads + 1) if heads % d == 0 and d >= g and heads // d >= in_group]
            for g in groups
            if g
        ]
        if all(fits):
            costs.append(sum(heads + divisors[0] for divisors in fits))
    assert sum(query_heads + heads for heads in filled if heads) == min(costs)
    assert all(heads == 0 or query_heads % heads == 0 for heads in filled)


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("llama_biased", {}, None),
        ("mistral", {}, None),
        ("qwen2", {}, None),
        ("mistral_sliding", {}, "no sliding window"),
        ("qwen2_mixed", {}, "no sliding window"),
        ("qwen3", {}, "'qwen3'"),
        ("llama_gqa", {"hidden_act": "gelu"}, "activation silu"),
    ],
)
def test_the_rule_that_stands_in_the_way(
    tiny_model: Callable[..., PreTrainedModel],
    name: str,
    overrides: dict[str, Any],
    reason: str | None,
) -> None:
    found = decilm_obstacle(tiny_model(name, **overrides).config)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found
