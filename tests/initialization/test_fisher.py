"""Fisher importance: the mean over sequences of what one sequence's Taylor importance squared is.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pgprune_lightning.initialization.fisher import fisher_metric
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.taylor import taylor_metric
from tests.tiny_models import random_tokens

TOKENS = random_tokens(rows=5)


@pytest.mark.parametrize(
    "unit_kinds", [["kv_group", "mlp_channel"], ["layer"], ["attention", "mlp"]]
)
def test_equals_its_definition(
    metric_inputs: Callable[..., MetricInputs], unit_kinds: list[str]
) -> None:
    metric_U = fisher_metric(metric_inputs(unit_kinds, [TOKENS[:3], TOKENS[3:]]))
    assert metric_U.dtype == torch.float64
    alone = [taylor_metric(metric_inputs(unit_kinds, [row[None]])) for row in TOKENS]
    expected_U = sum(gradient_U**2 for gradient_U in alone) / len(TOKENS)
    torch.testing.assert_close(metric_U, expected_U, rtol=1e-3, atol=1e-9)


def test_sees_what_cancels_between_sequences(metric_inputs: Callable[..., MetricInputs]) -> None:
    """Jensen: the mean square is at least the squared mean, and here it is more."""
    inputs = metric_inputs(["mlp_channel"], [TOKENS])
    fisher_U, taylor_U = fisher_metric(inputs), taylor_metric(inputs)
    assert (fisher_U > taylor_U**2).all()
