"""The policy a run starts from."""

# No `from __future__ import annotations`: the command line reads these types.
import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.metric import Metric, MetricInputs
from pgprune_lightning.initialization.probability import (
    Normalization,
    normalize_metric,
    score_const,
    sigmoid_norm,
)
from pgprune_lightning.initialization.random_metric import random_metric
from pgprune_lightning.initialization.wanda_sp import wanda_sp_metric
from pgprune_lightning.policy import FeasibleSet

METRICS: dict[str, Metric] = {"random": random_metric, "wanda_sp": wanda_sp_metric}


@dataclass(frozen=True)
class Initialization:
    """How the first keep-probabilities are found.

    Args:
        metric: Importance of a unit: `wanda_sp` (weight times activation) or `random`.
        normalization: Over which units the metric is brought to zero mean and unit variance: the
            units of a kind in one `layer`, or all of a kind (`global`). A kind with one unit a
            layer is always taken over all layers.
        projection: From importance to probability: `sigmoid_norm` (eq. A10) or `score_const`
            (eq. A11).
        slope: sigmoid_norm: factor before the sigmoid (the paper's is 1); larger is more certain.
        shift_to_budget: sigmoid_norm: shift the sigmoid so that the expected kept cost meets the
            budget, as the authors' code does; otherwise the mean is about one half.
        constant: score_const: probability of the units that the metric keeps, in (0.5, 1].
        num_blocks: Calibration sequences that the metric is measured on.
        plan: Start from the probabilities of this pruning plan instead of a metric: a plan's
            folder, or a run's, whose best plan is taken.
    """

    metric: Literal["wanda_sp", "random"] = "wanda_sp"
    normalization: Normalization = "layer"
    projection: Literal["sigmoid_norm", "score_const"] = "sigmoid_norm"
    slope: float = 1.0
    shift_to_budget: bool = True
    constant: float = 0.8
    num_blocks: int = 128
    plan: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot make a policy."""
        if not 0 < self.slope < math.inf:
            raise UserError(
                f"initialization.slope: must be above 0 and finite, given {self.slope}."
            )
        if not 0.5 < self.constant <= 1:
            raise UserError(
                f"initialization.constant: must lie in (0.5, 1], given {self.constant}."
            )
        if self.num_blocks < 1:
            raise UserError(f"initialization.num_blocks: must be at least 1: {self.num_blocks}.")


def initial_probabilities(
    options: Initialization, inputs: MetricInputs, feasible_set: FeasibleSet
) -> Tensor:
    """Measure the metric and turn it into a feasible policy.

    Args:
        options: What to measure and how to map it.
        inputs: Model, units and calibration data.
        feasible_set: Budget and bounds.

    Returns:
        Keep-probabilities, (U,), float64, CPU.

    Raises:
        UserError: If the metric is not finite, which broken weights or activations cause.
    """
    metric_U = METRICS[options.metric](inputs)
    if not bool(metric_U.isfinite().all()):
        raise UserError(
            f"initialization.metric: {options.metric} is not finite on this model; its weights or "
            "activations hold NaN or infinity. Try model.dtype float32, or another model file."
        )
    normalized_U = normalize_metric(metric_U, inputs.space, options.normalization)
    if options.projection == "score_const":
        return score_const(normalized_U, feasible_set, constant=options.constant)
    return sigmoid_norm(
        normalized_U,
        feasible_set,
        slope=options.slope,
        shift_to_budget=options.shift_to_budget,
    )
