"""Wanda-sp against its definition, written as loops.

Shapes: U units, B sequences, T tokens, I inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.wanda_sp import wanda_sp_metric
from tests.tiny_models import random_tokens

# Unequal batches: a mean over batches is not a mean over sequences.
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1)]


def importance_of_input(linear: nn.Linear, sequences: list[Tensor], column: int) -> float:
    magnitude = sum(abs(float(weight)) for weight in linear.weight[:, column]) / linear.out_features
    squared_norms = [
        sum(float(value) ** 2 for value in inputs_TI[:, column]) for inputs_TI in sequences
    ]
    return float(magnitude * (sum(squared_norms) / len(squared_norms)) ** 0.5)


def test_equals_its_definition(
    metric_inputs: Callable[..., MetricInputs], record_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = metric_inputs(["mlp_channel", "kv_group"], BATCHES)
    metric_U = wanda_sp_metric(inputs)
    assert metric_U.dtype == torch.float64
    for layer in (0, 2):
        module = inputs.model.model.layers[layer]
        for kind, linear, width in (
            ("kv_group", module.self_attn.o_proj, 2 * 8),  # two query heads of 8 share a key head
            ("mlp_channel", module.mlp.down_proj, 1),
        ):
            sequences = record_inputs(inputs, linear)
            assert len(sequences) == 4
            for unit, value in enumerate(inputs.space.view(metric_U, layer, kind)):
                columns = range(unit * width, (unit + 1) * width)
                expected = sum(importance_of_input(linear, sequences, c) for c in columns)
                assert float(value) == pytest.approx(expected, rel=1e-5)


def test_a_unit_of_several_channels_sums_over_them(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    kinds = ["kv_group", "mlp_channel"]
    single, bundled = (
        metric_inputs(kinds, BATCHES, channels_per_unit=channels) for channels in (1, 3)
    )
    single_U, bundled_U = wanda_sp_metric(single), wanda_sp_metric(bundled)
    for layer in range(3):
        alone, together = (
            inputs.space.view(metric_U, layer, "mlp_channel")
            for inputs, metric_U in ((single, single_U), (bundled, bundled_U))
        )
        expected = [float(alone[3 * unit : 3 * unit + 3].sum()) for unit in range(8)]
        assert together.tolist() == pytest.approx(expected, rel=1e-12)
        heads = [
            inputs.space.view(metric_U, layer, "kv_group")
            for inputs, metric_U in ((single, single_U), (bundled, bundled_U))
        ]
        assert torch.equal(*heads)


def test_leaves_the_model_as_it_was(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["kv_group", "mlp_channel"], BATCHES)
    first_U = wanda_sp_metric(inputs)
    assert not any(module._forward_pre_hooks for module in inputs.model.modules())
    assert torch.equal(wanda_sp_metric(inputs), first_U)
    assert all(parameter.grad is None for parameter in inputs.model.parameters())


def test_removes_its_hooks_when_a_batch_fails(metric_inputs: Callable[..., MetricInputs]) -> None:
    beyond_vocabulary = torch.full((1, 4), 10_000)
    inputs = metric_inputs(["kv_group"], [beyond_vocabulary])
    with pytest.raises(IndexError):
        wanda_sp_metric(inputs)
    assert not any(module._forward_pre_hooks for module in inputs.model.modules())


def test_no_calibration_data(metric_inputs: Callable[..., MetricInputs]) -> None:
    with pytest.raises(UserError, match="no sequence to measure on"):
        wanda_sp_metric(metric_inputs(["kv_group"], []))
