"""The widest stream that fits is found, and what a width costs can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from pgprune_lightning.errors import UserError
from pgprune_lightning.masking.frozen_model import model_on_meta
from research.slicegpt import largest_width, sliced_parameters


def test_counted_by_hand(tiny_model: Callable[..., PreTrainedModel]) -> None:
    width = 10
    attention = (32 + 2 * 16 + 32) * width
    mlp = 3 * 24 * width
    expected = 2 * 97 * width + 3 * (attention + mlp + 2 * width * width)
    assert sliced_parameters(tiny_model("llama_gqa"), width) == expected
    biases = 3 * (32 + 2 * 16 + width + 2 * 24 + width)
    assert sliced_parameters(tiny_model("llama_biased"), width) == expected + biases


@pytest.mark.parametrize(
    ("name", "family"),
    [("gemma", "Gemma"), ("gemma2", "Gemma 2 and 3"), ("opt", "OPT"), ("phi3", "Phi-3")],
)
def test_other_families_are_refused(
    tiny_model: Callable[..., PreTrainedModel], name: str, family: str
) -> None:
    """Gemma's norms multiply by 1 + w, and its stream is scaled on the way in."""
    with pytest.raises(UserError, match=f"slicegpt: .* {family} cannot be sliced; give .*Llama"):
        largest_width(tiny_model(name), 10**9)


def test_the_widest_that_fits(sliceable: PreTrainedModel) -> None:
    for width in (1, 15, 31):
        cost = sliced_parameters(sliceable, width)
        assert largest_width(sliceable, cost) == width
        assert largest_width(sliceable, sliced_parameters(sliceable, width + 1) - 1) == width
    assert largest_width(sliceable, 10**9) == 32
    assert largest_width(model_on_meta(sliceable.config), cost) == 31
    with pytest.raises(UserError, match=rf"takes {sliced_parameters(sliceable, 1)}\. Give"):
        largest_width(sliceable, sliced_parameters(sliceable, 1) - 1)


def test_the_shortcuts_are_paid_for(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """At the dense model's own size there is less than its width."""
    model = tiny_model("llama_mha")  # tied, so the untied projection is paid for too
    dense = sum(parameter.numel() for parameter in model.parameters())
    width = largest_width(model, dense)
    assert width < 32
    assert sliced_parameters(model, width) <= dense < sliced_parameters(model, width + 1)
