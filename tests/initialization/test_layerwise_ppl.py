"""Layerwise-PPL against models that really lack the layer."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.layerwise_ppl import layerwise_ppl_metric
from pgprune_lightning.initialization.metric import MetricInputs
from tests.tiny_models import random_tokens

# Unequal batches: a mean over batches is not a mean over tokens.
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1)]


def test_equals_the_loss_of_the_cut_model(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["layer"], BATCHES)
    metric = layerwise_ppl_metric(inputs)
    assert metric.dtype == torch.float64
    input_ids = torch.cat(BATCHES)
    expected = []
    for dropped in range(3):
        cut = copy.deepcopy(inputs.model)
        cut.model.layers = nn.ModuleList(
            layer for index, layer in enumerate(cut.model.layers) if index != dropped
        )
        cut.config.num_hidden_layers = 2
        expected.append(float(cut(input_ids, labels=input_ids, use_cache=False).loss))
    assert metric.tolist() == pytest.approx(expected, rel=1e-5)
    assert len({round(loss, 3) for loss in expected}) == 3


def test_of_sub_layers_too(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["attention", "mlp"], BATCHES)
    input_ids, expected_U = torch.cat(BATCHES), torch.zeros(6)
    for layer in range(3):
        for kind, path in (("attention", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
            without = copy.deepcopy(inputs.model)
            without.get_submodule(f"model.layers.{layer}.{path}").weight.data.zero_()
            loss = without(input_ids, labels=input_ids, use_cache=False).loss
            inputs.space.view(expected_U, layer, kind).fill_(loss)
    torch.testing.assert_close(layerwise_ppl_metric(inputs).float(), expected_U)
    assert len(expected_U.unique()) == 6


def test_no_calibration_data(metric_inputs: Callable[..., MetricInputs]) -> None:
    with pytest.raises(UserError, match="no sequence to measure on"):
        layerwise_ppl_metric(metric_inputs(["layer"], []))
