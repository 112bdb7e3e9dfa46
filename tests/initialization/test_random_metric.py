"""Random importance is standard normal, and the seed's alone."""

import dataclasses
import math
from collections.abc import Callable

import torch

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.random_metric import random_metric
from pgprune_lightning.policy import UnitLayout


def test_the_seed_decides(metric_inputs: Callable[..., MetricInputs]) -> None:
    kinds = ["kv_group", "mlp_channel"]
    drawn_U = random_metric(metric_inputs(kinds, [], seed=3))
    torch.manual_seed(11)  # the global generator has no say
    assert torch.equal(random_metric(metric_inputs(kinds, [], seed=3)), drawn_U)
    assert not torch.equal(random_metric(metric_inputs(kinds, [], seed=4)), drawn_U)
    assert drawn_U.dtype == torch.float64


def test_standard_normal(metric_inputs: Callable[..., MetricInputs]) -> None:
    wide = UnitLayout.build([(0, "mlp_channel", 20_000, 1, 0)], total_parameters=20_000)
    drawn_U = random_metric(dataclasses.replace(metric_inputs(["layer"], []), space=wide))
    ranked_U = drawn_U.sort().values
    expected_U = 0.5 * (1 + torch.erf(ranked_U / math.sqrt(2)))
    empirical_U = (torch.arange(20_000) + 0.5) / 20_000
    # Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) once in a thousand seeds.
    assert (expected_U - empirical_U).abs().max() < 1.95 / math.sqrt(20_000)
