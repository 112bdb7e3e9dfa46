"""Options are checked where they are written, and a policy is feasible or not made.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization import (
    Initialization,
    initial_probabilities,
    normalize_metric,
    score_const,
    sigmoid_norm,
)
from pgprune_lightning.initialization.initial_policy import METRICS, MetricName
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.random_metric import random_metric
from pgprune_lightning.initialization.wanda_sp import wanda_sp_metric
from pgprune_lightning.policy import FeasibleSet, UnitKind
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


def test_every_metric_has_a_name_in_the_config() -> None:
    assert tuple(METRICS) == get_args(MetricName)


@pytest.mark.parametrize("kind", get_args(UnitKind))
@pytest.mark.parametrize("name", METRICS)
def test_every_metric_ranks_the_kinds_that_it_names(
    metric_inputs: Callable[..., MetricInputs], name: MetricName, kind: UnitKind
) -> None:
    inputs = metric_inputs([kind], [random_tokens()])
    feasible_set = FeasibleSet(inputs.space, 0.6)
    options = Initialization(metric=name, normalization="global")
    if kind not in METRICS[name].unit_kinds:
        able = [other for other, metric in METRICS.items() if kind in metric.unit_kinds]
        message = rf"{name} measures units of kind .*units.kinds \[{kind}\] use.* {', '.join(able)}"
        with pytest.raises(UserError, match=message):
            initial_probabilities(options, inputs, feasible_set)
        return
    with torch.no_grad():
        metric_U = METRICS[name](inputs)
        s_U = initial_probabilities(options, inputs, feasible_set)
    assert metric_U.shape == (inputs.space.num_units,)
    assert metric_U.dtype == torch.float64
    assert len(set(metric_U.tolist())) == inputs.space.num_units
    assert torch.equal(s_U.argsort(), metric_U.argsort())


@pytest.mark.parametrize("name", METRICS)
def test_what_needs_text_says_so(
    metric_inputs: Callable[..., MetricInputs], name: MetricName
) -> None:
    inputs = metric_inputs([METRICS[name].unit_kinds[-1]], [])
    options = Initialization(metric=name)
    if options.reads_text:
        with pytest.raises(UserError, match="no sequence to measure on"):
            METRICS[name](inputs)
    else:
        METRICS[name](inputs)
    assert not Initialization(metric=name, plan="runs/a").reads_text
    assert not Initialization(metric=name, scores="scores.safetensors").reads_text


def test_scores_stand_in_for_the_metric(
    metric_inputs: Callable[..., MetricInputs], tmp_path: Path
) -> None:
    inputs = metric_inputs(["layer"], [])  # the default metric cannot measure layers
    path = tmp_path / "scores.safetensors"
    save_file({"scores": torch.tensor([0.5, 2.0, 1.0])}, path)
    options = Initialization(scores=str(path))
    options.check_units(inputs.space)
    s_U = initial_probabilities(options, inputs, FeasibleSet(inputs.space, 0.7))
    assert s_U.argsort().tolist() == [0, 2, 1]


def test_units_are_checked_before_anything_is_measured(
    metric_inputs: Callable[..., MetricInputs],
) -> None:
    layers, heads = metric_inputs(["layer"], []).space, metric_inputs(["kv_group"], []).space
    Initialization().check_units(heads)
    Initialization(plan="runs/a").check_units(layers)
    with pytest.raises(UserError, match="wanda_sp measures units of kind kv_group, mlp_channel"):
        Initialization().check_units(layers)
    with pytest.raises(UserError, match="cannot be read"):
        Initialization(scores="none.safetensors").check_units(heads)


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
        ({"plan": "runs/a", "scores": "s.safetensors"}, "plan and scores both"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Initialization(**options)
