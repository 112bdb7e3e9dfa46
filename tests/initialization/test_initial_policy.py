"""Options are checked where they are written, and a policy is feasible or not made.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import (
    Initialization,
    initial_probabilities,
    normalize_metric,
    score_const,
    sigmoid_norm,
)
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.random_metric import random_metric
from pgprune_lightning.initialization.wanda_sp import wanda_sp_metric
from pgprune_lightning.policy import FeasibleSet
from tests.tiny_models import random_tokens

KINDS = ["kv_group", "mlp_channel"]


def test_options_reach_what_they_name(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(KINDS, [random_tokens()], seed=5)
    feasible_set = FeasibleSet(inputs.space, 0.6)
    wanda_U = normalize_metric(wanda_sp_metric(inputs), inputs.space, "layer")
    random_U = normalize_metric(random_metric(inputs), inputs.space, "global")
    expected = {
        Initialization(): sigmoid_norm(wanda_U, feasible_set, slope=1.0, shift_to_budget=True),
        Initialization(slope=4.0, shift_to_budget=False): sigmoid_norm(
            wanda_U, feasible_set, slope=4.0, shift_to_budget=False
        ),
        Initialization(
            metric="random", normalization="global", projection="score_const", constant=0.9
        ): score_const(random_U, feasible_set, constant=0.9),
    }
    for options, s_U in expected.items():
        assert torch.equal(initial_probabilities(options, inputs, feasible_set), s_U), options
    assert not torch.equal(*list(expected.values())[:2])


def test_broken_weights_make_no_policy(metric_inputs: Callable[..., MetricInputs]) -> None:
    inputs = metric_inputs(KINDS, [random_tokens()])
    inputs.model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(UserError, match=r"wanda_sp is not finite.*float32"):
        initial_probabilities(Initialization(), inputs, FeasibleSet(inputs.space, 0.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slope": 0.0}, "slope: must be above 0"),
        ({"slope": -1.0}, "slope: must be above 0"),
        ({"slope": float("nan")}, "slope: must be above 0"),
        ({"slope": float("inf")}, "slope: must be above 0"),
        ({"constant": 0.5}, r"constant: must lie in \(0\.5, 1\]"),
        ({"constant": 1.01}, r"constant: must lie in \(0\.5, 1\]"),
        ({"constant": float("nan")}, r"constant: must lie in \(0\.5, 1\]"),
        ({"num_blocks": 0}, "num_blocks: must be at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Initialization(**options)
