"""FLAP's fluctuation metric against its definition, written as loops."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pgprune_lightning.initialization.flap import flap_metric
from pgprune_lightning.initialization.metric import MetricInputs
from tests.tiny_models import random_tokens

# Unequal batches: a mean of the batches' variances is not the variance.
BATCHES = [random_tokens(rows=3), random_tokens(rows=1, seed=1), random_tokens(rows=2, seed=2)]


def fluctuation(linear: nn.Linear, sequences: list[Tensor]) -> list[float]:
    """Variance of each input over all tokens, times the squared norm of its weights."""
    columns = zip(*torch.cat(sequences).tolist(), strict=True)
    return [
        statistics.variance(column) * sum(weight**2 for weight in weights)
        for column, weights in zip(columns, linear.weight.T.tolist(), strict=True)
    ]


def test_equals_its_definition(assert_units_sum_their_inputs: Callable[..., None]) -> None:
    assert_units_sum_their_inputs(flap_metric, BATCHES, fluctuation)


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
