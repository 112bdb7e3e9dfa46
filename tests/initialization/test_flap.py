"""FLAP's fluctuation metric against its definition, written as loops."""

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pgprune_lightning.initialization.flap import flap_metric
from pgprune_lightning.initialization.metric import MetricInputs
from tests.tiny_models import random_tokens

# Unequal batches: a mean of the batches' variances is not the variance.
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1), random_tokens(rows=2, seed=2)]


def test_equals_its_definition(
    metric_inputs: Callable[..., MetricInputs], record_inputs: Callable[..., list[Tensor]]
) -> None:
    inputs = metric_inputs(["mlp_channel", "kv_group"], BATCHES)
    metric_U = flap_metric(inputs)
    assert metric_U.dtype == torch.float64
    for layer in (0, 2):
        module = inputs.model.model.layers[layer]
        for kind, linear, width in (
            ("kv_group", module.self_attn.o_proj, 2 * 8),  # two query heads of 8 share a key head
            ("mlp_channel", module.mlp.down_proj, 1),
        ):
            read_NI = torch.cat(record_inputs(inputs, linear)).tolist()
            assert len(read_NI) == 6 * 24
            worth = [
                statistics.variance(column) * sum(weight**2 for weight in weights)
                for column, weights in zip(
                    zip(*read_NI, strict=True), linear.weight.T.tolist(), strict=True
                )
            ]
            for unit, value in enumerate(inputs.space.view(metric_U, layer, kind)):
                expected = sum(worth[unit * width : (unit + 1) * width])
                assert float(value) == pytest.approx(expected, rel=1e-5)


def test_an_input_that_never_changes_is_worth_nothing(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    """What sets it apart from Wanda: a large input that is constant could be a bias."""
    inputs = metric_inputs(["mlp_channel"], BATCHES)
    down = inputs.model.model.layers[1].mlp.down_proj

    def fix_channel(_module: object, arguments: tuple[Tensor]) -> tuple[Tensor]:
        values = arguments[0].clone()
        values[..., 5] = 1000.0
        return (values,)

    handle = down.register_forward_pre_hook(fix_channel)
    values_I = inputs.space.view(flap_metric(inputs), 1, "mlp_channel")
    handle.remove()
    assert values_I[5] == 0
    assert (values_I.sort().values[1:] > 0).all()
