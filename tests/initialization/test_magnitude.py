"""Magnitude against the root of a sum over each unit's weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pgprune_lightning.initialization.magnitude import magnitude_metric
from pgprune_lightning.initialization.metric import MetricInputs

KINDS = ["kv_group", "mlp_channel"]


def root(*weights: Tensor) -> float:
    return sum(value**2 for weight in weights for value in weight.flatten().tolist()) ** 0.5


@pytest.mark.parametrize("name", ["llama_gqa", "llama_biased"])
def test_heads_and_channels(metric_inputs: Callable[..., MetricInputs], name: str) -> None:
    inputs = metric_inputs(KINDS, [], name=name)
    metric_U = magnitude_metric(inputs)
    assert metric_U.dtype == torch.float64
    for layer, module in enumerate(inputs.model.model.layers):
        attention, mlp = module.self_attn, module.mlp
        for unit, value in enumerate(inputs.space.view(metric_U, layer, "kv_group")):
            queries, keys = slice(unit * 16, unit * 16 + 16), slice(unit * 8, unit * 8 + 8)
            expected = root(
                attention.q_proj.weight[queries],
                attention.k_proj.weight[keys],
                attention.v_proj.weight[keys],
                attention.o_proj.weight[:, queries],
            )
            assert float(value) == pytest.approx(expected, rel=1e-6)
        for unit, value in enumerate(inputs.space.view(metric_U, layer, "mlp_channel")):
            expected = root(
                mlp.gate_proj.weight[unit], mlp.up_proj.weight[unit], mlp.down_proj.weight[:, unit]
            )
            assert float(value) == pytest.approx(expected, rel=1e-6)


def test_a_layer_has_all_its_matrices(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["layer"], [])
    expected = [
        root(*(parameter for name, parameter in module.named_parameters() if "norm" not in name))
        for module in inputs.model.model.layers
    ]
    assert magnitude_metric(inputs).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_sub_layer_has_its_own(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["attention", "mlp"], [])
    metric_U = magnitude_metric(inputs)
    for layer, module in enumerate(inputs.model.model.layers):
        for kind, part in (("attention", module.self_attn), ("mlp", module.mlp)):
            (value,) = inputs.space.view(metric_U, layer, kind).tolist()
            assert value == pytest.approx(root(*part.parameters()), rel=1e-6)
