"""First-order Taylor importance against weights times their gradients, from plain autograd.

Shapes: U units, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.taylor import taylor_metric
from tests.tiny_models import random_tokens

# Unequal batches: a mean over batches is not a mean over sequences.
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1)]


def trainable_copy_with_gradients(inputs: MetricInputs) -> nn.Module:
    """A copy of the model after a backward pass of the mean loss over all sequences at once."""
    model = copy.deepcopy(inputs.model)
    nn.Module.requires_grad_(model, True)
    input_ids = torch.cat(BATCHES)
    model(input_ids, labels=input_ids).loss.backward()
    return model


def saliences(linear: nn.Linear) -> list[float]:
    """The sum of weight times gradient over each input of a projection."""
    return [
        sum(w * g for w, g in zip(weights, gradients, strict=True))
        for weights, gradients in zip(
            linear.weight.T.tolist(), linear.weight.grad.T.tolist(), strict=True
        )
    ]


def test_heads_and_channels(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["kv_group", "mlp_channel"], BATCHES)
    metric_U = taylor_metric(inputs)
    assert metric_U.dtype == torch.float64
    model = trainable_copy_with_gradients(inputs)
    for layer, module in enumerate(model.model.layers):
        for kind, linear, width in (
            ("kv_group", module.self_attn.o_proj, 2 * 8),
            ("mlp_channel", module.mlp.down_proj, 1),
        ):
            by_input = saliences(linear)
            expected = [
                abs(sum(by_input[start : start + width]))
                for start in range(0, len(by_input), width)
            ]
            found = inputs.space.view(metric_U, layer, kind).tolist()
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_value_and_up_projections_say_the_same(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    """Without biases the loss depends on the product of a unit's up and down weights only."""
    inputs = metric_inputs(["kv_group", "mlp_channel"], BATCHES)
    metric_U = taylor_metric(inputs)
    module = trainable_copy_with_gradients(inputs).model.layers[1]
    for kind, linear in (
        ("kv_group", module.self_attn.v_proj),
        ("mlp_channel", module.mlp.up_proj),
    ):
        found = inputs.space.view(metric_U, 1, kind)
        products = (linear.weight * linear.weight.grad).detach()
        by_unit = products.view(len(found), -1).sum(1)
        torch.testing.assert_close(found, by_unit.abs().double(), rtol=1e-3, atol=1e-6)


def test_layers(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["layer"], BATCHES, name="llama_biased")
    expected = []
    for module in trainable_copy_with_gradients(inputs).model.layers:
        linears = (module.self_attn.o_proj, module.mlp.down_proj)
        total = sum(
            float((parameter.detach() * parameter.grad).sum())
            for linear in linears
            for parameter in (linear.weight, linear.bias)
        )
        expected.append(abs(total))
    assert taylor_metric(inputs).tolist() == pytest.approx(expected, rel=1e-3)


def test_no_calibration_data(metric_inputs: Callable[..., MetricInputs]) -> None:
    with pytest.raises(UserError, match="no sequence to measure on"):
        taylor_metric(metric_inputs(["kv_group"], []))
