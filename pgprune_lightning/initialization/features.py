"""The metrics that a structured policy has slopes on.

Shapes: U units, F metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.initial_policy import (
    METRICS,
    MetricName,
    check_kinds,
    normalized_metric,
)
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.probability import Normalization
from pgprune_lightning.policy import UnitLayout

INITIAL = "initial"
"""Stands for the metric that the run starts from."""


def check_features(names: Sequence[str], space: UnitLayout) -> None:
    """Refuse metrics that do not exist or cannot measure these units, before a model is loaded.

    Args:
        names: The metrics; `initial`, which is checked elsewhere, is left out.
        space: The units.

    Raises:
        UserError: If there is one.
    """
    for name in names:
        if name != INITIAL and name not in METRICS:
            raise UserError(
                f"model.policy: features: there is no metric {name!r}; give some of "
                f"{', '.join(METRICS)}."
            )
        if name != INITIAL:
            check_kinds(cast(MetricName, name), space)


def features_read_text(names: Sequence[str]) -> bool:
    """Whether calibration text is needed for metrics beside the initial one."""
    return any(METRICS[cast(MetricName, name)].reads_text for name in names if name != INITIAL)


def features_need_gradients(names: Sequence[str]) -> bool:
    """Whether metrics beside the initial one take a backward pass."""
    return any(METRICS[cast(MetricName, name)].needs_gradients for name in names if name != INITIAL)


def measure_features(
    names: Sequence[str],
    initial_U: Tensor,
    normalization: Normalization,
    inputs: MetricInputs,
) -> Tensor:
    """Measure and normalise metrics, each in its turn.

    Args:
        names: The metrics.
        initial_U: Values of `initial`, (U,) float64, normalised already.
        normalization: How the others are.
        inputs: Model, units and calibration data.

    Returns:
        Normalised values, (F, U), float64, CPU.

    Raises:
        UserError: If a metric is not finite.
    """
    return torch.stack(
        [
            initial_U
            if name == INITIAL
            else normalized_metric(cast(MetricName, name), normalization, inputs)
            for name in names
        ]
    )
