"""Gates against masks and finite differences, for every kind of unit.

Shapes: U units.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pgprune_lightning.masking import token_nll, unit_layout_of
from pgprune_lightning.masking.gates import gate_gradient, gated
from pgprune_lightning.slicing import cut_model
from tests.tiny_models import random_tokens


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama_biased", {}),
        ("gemma2", {}),
        ("opt", {"activation_function": "gelu"}),  # its ReLU has no slope at the kink
    ],
)
def test_a_hard_gate_is_a_mask_and_its_gradient_a_difference(
    tiny_model: Callable[..., PreTrainedModel],
    name: str,
    overrides: dict[str, Any],
    units: dict[str, Any],
) -> None:
    """Also behind Gemma's norm, which would undo a gate in front of it, and on OPT's flat rows."""
    model = tiny_model(name, **overrides).double()
    space = unit_layout_of(model, **units)
    batch_BT = random_tokens(rows=2, tokens=12)
    generator = torch.Generator().manual_seed(3)
    gates_1U = (torch.rand(1, space.num_units, generator=generator) < 0.6).double()

    def loss(at_1U: torch.Tensor) -> torch.Tensor:
        with gated(model, space, at_1U):
            return token_nll(model, batch_BT).mean(1)

    leaf_1U = gates_1U.clone().requires_grad_()
    with torch.enable_grad(), gated(model, space, leaf_1U):
        losses_B, gradient_1U = gate_gradient(model, batch_BT, leaf_1U)
    torch.testing.assert_close(losses_B, loss(gates_1U))

    step = 1e-2  # the norms compute in float32, which a smaller one would show
    for unit in {0, 1, space.num_units // 2, space.num_units - 1}:
        moved_1U = gates_1U.repeat(2, 1)
        moved_1U[0, unit] += step
        moved_1U[1, unit] -= step
        slope = (loss(moved_1U[:1]) - loss(moved_1U[1:])).sum() / (2 * step)
        torch.testing.assert_close(gradient_1U[0, unit], slope.double(), rtol=2e-3, atol=1e-4)
    assert gradient_1U.ne(0).all(), "dropped units have gradients too"
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama_biased", "gemma2", "opt"])
def test_half_a_gate_adds_half_of_a_sub_layer(
    tiny_model: Callable[..., PreTrainedModel], name: str
) -> None:
    """In front of Gemma's norm it would add nearly all, and have next to no gradient."""
    model = tiny_model(name)
    space = unit_layout_of(model, ["mlp"])
    states = []
    for gate in (0.0, 0.5, 1.0):
        with gated(model, space, torch.full((1, 3), gate)):
            output = model(random_tokens(), output_hidden_states=True)
        states.append(output.hidden_states[1])
    torch.testing.assert_close(states[1], (states[0] + states[2]) / 2, rtol=0, atol=1e-5)


def test_the_gated_model_is_the_cut_one(
    tiny_model: Callable[..., PreTrainedModel], units: dict[str, Any]
) -> None:
    model = tiny_model("llama_gqa")  # with biases, an empty group's would leave only when cut
    space = unit_layout_of(model, **units)
    mask_U = torch.rand(space.num_units, generator=torch.Generator().manual_seed(4)) < 0.5
    batch_BT = random_tokens()
    with gated(model, space, mask_U.float()[None]):
        gated_nll = token_nll(model, batch_BT)
    cut_nll = token_nll(cut_model(model, space, mask_U), batch_BT)
    torch.testing.assert_close(gated_nll, cut_nll, rtol=1e-4, atol=1e-5)
