"""The policy a run starts from."""

# No `from __future__ import annotations`: the command line reads these types.
import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.block_influence import block_influence_metric
from pgprune_lightning.initialization.bonsai import bonsai_metric
from pgprune_lightning.initialization.fisher import fisher_metric
from pgprune_lightning.initialization.flap import flap_metric
from pgprune_lightning.initialization.layerwise_ppl import layerwise_ppl_metric
from pgprune_lightning.initialization.magnitude import magnitude_metric
from pgprune_lightning.initialization.metric import Metric, MetricInputs
from pgprune_lightning.initialization.probability import (
    Normalization,
    normalize_metric,
    score_const,
    sigmoid_norm,
)
from pgprune_lightning.initialization.projection_inputs import PROJECTIONS
from pgprune_lightning.initialization.random_metric import random_metric
from pgprune_lightning.initialization.refinement import check_refinement, refined
from pgprune_lightning.initialization.scores_file import load_scores
from pgprune_lightning.initialization.taylor import taylor_metric
from pgprune_lightning.initialization.wanda_sp import wanda_sp_metric
from pgprune_lightning.policy import FeasibleSet, UnitKind, UnitLayout

MetricName = Literal[
    "wanda_sp",
    "flap",
    "magnitude",
    "taylor",
    "fisher",
    "layerwise_ppl",
    "block_influence",
    "bonsai",
    "random",
]

EVERY_KIND: tuple[UnitKind, ...] = get_args(UnitKind)
WHOLE_PARTS: tuple[UnitKind, ...] = ("attention", "mlp", "layer")

METRICS: dict[MetricName, Metric] = {
    "wanda_sp": Metric(wanda_sp_metric, tuple(PROJECTIONS)),
    "flap": Metric(flap_metric, tuple(PROJECTIONS)),
    "magnitude": Metric(magnitude_metric, EVERY_KIND, reads_text=False),
    "taylor": Metric(taylor_metric, EVERY_KIND, needs_gradients=True),
    "fisher": Metric(fisher_metric, EVERY_KIND, needs_gradients=True),
    "layerwise_ppl": Metric(layerwise_ppl_metric, WHOLE_PARTS),
    "block_influence": Metric(block_influence_metric, WHOLE_PARTS),
    "bonsai": Metric(bonsai_metric, EVERY_KIND, draws=True),
    "random": Metric(random_metric, EVERY_KIND, reads_text=False, draws=True),
}


@dataclass(frozen=True)
class Initialization:
    """How the first keep-probabilities are found.

    Args:
        metric: Importance of a unit. Of heads and channels: `wanda_sp` (weight times activation),
            `flap` (weight times fluctuation of the activation). Of layers and sub-layers:
            `layerwise_ppl` (loss without it), `block_influence` (how far it turns the hidden
            states). Of any unit: `magnitude` (of the weights), `random`, `bonsai` (regression on
            the losses of sampled sub-networks, 256 forward passes of a batch), and, with a backward
            pass, `taylor` and `fisher` (gradient of a gate on the unit, absolute or squared).
        normalization: Over which units the metric is brought to zero mean and unit variance: the
            units of a kind in one `layer`, or all of a kind (`global`). A kind with one unit a
            layer is always taken over all layers. `per_parameter`: over all units of all kinds,
            the logarithm of the metric for each parameter of the unit; for a budget of parameters.
        projection: From importance to probability: `sigmoid_norm` (eq. A10) or `score_const`
            (eq. A11).
        slope: sigmoid_norm: factor before the sigmoid (the paper's is 1); larger is more certain.
        shift_to_budget: sigmoid_norm: shift the sigmoid so that the expected kept cost meets the
            budget, as the authors' code does; otherwise the mean is about one half.
        constant: score_const: probability of the units that the metric keeps, in (0.5, 1].
        num_blocks: Calibration sequences that the metric is measured on.
        refine_steps: Steps that then move the importance along the gradients of gates at the masks
            it leads to, with a backward pass of 4 sequences each, of these num_blocks in turn.
        plan: Start from the probabilities of this pruning plan instead of a metric: a plan's
            folder, or a run's, whose best plan is taken. They are taken as they are: what measures,
            maps and refines a metric has no part in it.
        scores: Take the importance from this safetensors file instead of a metric: one tensor
            `scores`, (units,), in the order of the mask: layer by layer, in a layer kind by kind
            as in `unit_kinds`, then by index.
    """

    metric: MetricName = "wanda_sp"
    normalization: Normalization = "layer"
    projection: Literal["sigmoid_norm", "score_const"] = "sigmoid_norm"
    slope: float = 1.0
    shift_to_budget: bool = True
    constant: float = 0.8
    num_blocks: int = 128
    refine_steps: int = 0
    plan: str | None = None
    scores: str | None = None

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
        check_refinement(self.refine_steps, self.num_blocks)
        if self.plan is not None and self.scores is not None:
            raise UserError("initialization: plan and scores both say where to start; give one.")

    @property
    def reads_text(self) -> bool:
        """Whether calibration text is needed."""
        return self._refines or (self._measures and METRICS[self.metric].reads_text)

    @property
    def needs_gradients(self) -> bool:
        """Whether a backward pass is taken."""
        return self._refines or (self._measures and METRICS[self.metric].needs_gradients)

    @property
    def _measures(self) -> bool:
        return self.plan is None and self.scores is None

    @property
    def _refines(self) -> bool:
        return self.plan is None and self.refine_steps > 0

    def check_units(self, space: UnitLayout) -> None:
        """Check that every unit can be given an importance, before a model is loaded.

        Args:
            space: The units.

        Raises:
            UserError: If the metric cannot measure a kind, or the scores are for other units.
        """
        if self.scores is not None:
            load_scores(self.scores, space)
        elif self.plan is None:
            check_kinds(self.metric, space)


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
        UserError: If the metric cannot measure a kind, or is not finite, which broken weights or
            activations cause.
    """
    importance_U = refined_importance(options, inputs, feasible_set)
    return probabilities_of(options, importance_U, feasible_set)


def refined_importance(
    options: Initialization, inputs: MetricInputs, feasible_set: FeasibleSet
) -> Tensor:
    """Measure the metric, normalise it, and refine its ranking, (U,), float64, CPU.

    Raises:
        UserError: As `initial_probabilities`.
    """
    normalized_U = normalized_importance(options, inputs)
    if options.refine_steps == 0:
        return normalized_U
    return refined(normalized_U, inputs, feasible_set, options.refine_steps)


def probabilities_of(
    options: Initialization, normalized_U: Tensor, feasible_set: FeasibleSet
) -> Tensor:
    """Turn a normalised metric, (U,), into a feasible policy, (U,), float64, CPU."""
    if options.projection == "score_const":
        return score_const(normalized_U, feasible_set, constant=options.constant)
    return sigmoid_norm(
        normalized_U,
        feasible_set,
        slope=options.slope,
        shift_to_budget=options.shift_to_budget,
    )


def normalized_importance(options: Initialization, inputs: MetricInputs) -> Tensor:
    """Measure the metric, or read the scores, and normalise, (U,), float64, CPU.

    Raises:
        UserError: As `initial_probabilities`.
    """
    if options.scores is not None:
        importance_U = load_scores(options.scores, inputs.space)
        return normalize_metric(importance_U, inputs.space, options.normalization)
    return normalized_metric(options.metric, options.normalization, inputs)


def normalized_metric(
    name: MetricName, normalization: Normalization, inputs: MetricInputs
) -> Tensor:
    """Measure one metric and normalise it, (U,), float64, CPU.

    Raises:
        UserError: As `initial_probabilities`.
    """
    check_kinds(name, inputs.space)
    metric_U = METRICS[name](inputs)
    if not bool(metric_U.isfinite().all()):
        raise UserError(
            f"initialization.metric: {name} is not finite on this model; its weights or "
            "activations hold NaN or infinity. Try model.execution.dtype float32, or another model "
            "file."
        )
    return normalize_metric(metric_U, inputs.space, normalization)


def check_kinds(name: MetricName, space: UnitLayout) -> None:
    """Refuse a metric that cannot measure all these units.

    Raises:
        UserError: If it cannot.
    """
    kinds = set(space.kinds)
    if kinds <= set(METRICS[name].unit_kinds):
        return
    able = [other for other, metric in METRICS.items() if kinds <= set(metric.unit_kinds)]
    raise UserError(
        f"initialization.metric: {name} measures units of kind "
        f"{', '.join(METRICS[name].unit_kinds)}; for units.kinds [{', '.join(space.kinds)}] use "
        f"one of {', '.join(able)}."
    )
