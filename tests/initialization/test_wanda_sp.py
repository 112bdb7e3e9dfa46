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


def weight_times_activation(linear: nn.Linear, sequences: list[Tensor]) -> list[float]:
    """Mean absolute weight of each input, times the root mean square of its norm in a sequence."""

    def importance(column: int) -> float:
        weights = linear.weight[:, column]
        magnitude = sum(abs(float(weight)) for weight in weights) / linear.out_features
        squared_norms = [
            sum(float(value) ** 2 for value in inputs_TI[:, column]) for inputs_TI in sequences
        ]
        return float(magnitude * (sum(squared_norms) / len(squared_norms)) ** 0.5)

    return [importance(column) for column in range(linear.in_features)]


def test_equals_its_definition(assert_units_sum_their_inputs: Callable[..., None]) -> None:
    assert_units_sum_their_inputs(wanda_sp_metric, BATCHES, weight_times_activation)


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
