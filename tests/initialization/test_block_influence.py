"""Block influence against the hidden states that the model itself returns."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

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


@pytest.mark.parametrize(
    ("name", "norm_between"),
    [("llama_gqa", "post_attention_layernorm"), ("gemma2", "pre_feedforward_layernorm")],
)
def test_of_sub_layers_too(
    metric_inputs: Callable[..., MetricInputs], name: str, norm_between: str
) -> None:
    """The stream between attention and MLP is what the norm before the MLP is given."""
    inputs = metric_inputs(["attention", "mlp"], BATCHES, name=name)
    metric_U = block_influence_metric(inputs)
    streams: list[Tensor] = []
    for layer in inputs.model.model.layers:
        for norm in (layer.input_layernorm, layer.get_submodule(norm_between)):
            norm.register_forward_pre_hook(lambda _module, given: streams.append(given[0]))
    inputs.model.model.norm.register_forward_pre_hook(
        lambda _module, given: streams.append(given[0])
    )
    inputs.model(torch.cat(BATCHES))
    expected_U = torch.zeros(6, dtype=torch.float64)
    for place, (before, behind) in enumerate(pairwise(streams)):
        cosine = nn.functional.cosine_similarity(before, behind, dim=-1).mean()
        kind = ("attention", "mlp")[place % 2]
        inputs.space.view(expected_U, place // 2, kind).fill_(1 - cosine)
    torch.testing.assert_close(metric_U, expected_U, rtol=1e-4, atol=1e-6)
    assert metric_U.min() > 1e-4


@pytest.mark.parametrize(
    ("kind", "other"), [("attention", "mlp.dense_4h_to_h"), ("mlp", "attention.dense")]
)
def test_side_by_side_each_is_measured_alone(
    metric_inputs: Callable[..., MetricInputs], kind: str, other: str
) -> None:
    """GPT-NeoX: attention and MLP read one stream; without the other it is a layer of one part."""
    inputs = metric_inputs(["attention", "mlp"], BATCHES, name="gpt_neox")
    alone = metric_inputs(["layer"], BATCHES, name="gpt_neox")
    for parameter in alone.model.get_submodule(f"gpt_neox.layers.0.{other}").parameters():
        parameter.data.zero_()
    metric_U, of_one_part_L = block_influence_metric(inputs), block_influence_metric(alone)
    (found,) = inputs.space.view(metric_U, 0, kind).tolist()
    assert found == pytest.approx(float(of_one_part_L[0]), rel=1e-4)


def test_a_layer_that_adds_nothing_has_none(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(["layer"], BATCHES)
    idle = inputs.model.model.layers[1]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    metric = block_influence_metric(inputs)
    assert float(metric[1]) == pytest.approx(0, abs=1e-6)
    assert metric[[0, 2]].min() > 0.01
    assert not any(module._forward_hooks for module in inputs.model.modules())
