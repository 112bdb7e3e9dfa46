"""Block influence against the hidden states that the model itself returns."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from pgprune_lightning.initialization.block_influence import block_influence_metric
from pgprune_lightning.initialization.metric import MetricInputs
from tests.tiny_models import random_tokens

# Unequal batches: a mean over batches is not a mean over tokens.
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1)]


def test_equals_its_definition(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["layer"], BATCHES)
    metric = block_influence_metric(inputs)
    assert metric.dtype == torch.float64
    without_norm = copy.deepcopy(inputs.model)
    without_norm.model.norm = nn.Identity()  # it would be part of the last hidden state
    with torch.no_grad():
        states = without_norm(torch.cat(BATCHES), output_hidden_states=True).hidden_states
    expected = []
    for before, after in pairwise(states):
        cosines = [
            float(x @ y / (x.norm() * y.norm()))
            for x, y in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
        ]
        expected.append(1 - sum(cosines) / len(cosines))
    assert metric.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_adds_nothing_has_none(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["layer"], BATCHES)
    idle = inputs.model.model.layers[1]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    metric = block_influence_metric(inputs)
    assert float(metric[1]) == pytest.approx(0, abs=1e-6)
    assert metric[[0, 2]].min() > 0.01
    assert not any(module._forward_hooks for module in inputs.model.modules())
