"""From a metric of importance to keep-probabilities.

Shapes: U units.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pgprune_lightning.policy import FeasibleSet, UnitLayout, shift_logits

Normalization = Literal["layer", "global", "per_parameter"]


def normalize_metric(metric_U: Tensor, space: UnitLayout, scope: Normalization) -> Tensor:
    """Bring a metric to zero mean and unit variance.

    Args:
        metric_U: Importance, (U,), float64, finite.
        space: The units.
        scope: `layer`: over the units of one kind in one layer, so that layers whose activations
            are large do not win by that alone, but over all units of a kind that has one a layer;
            `global`: over all units of a kind; `per_parameter`: over all units of all kinds, the
            logarithm of the metric for each parameter of the unit, so that what a head is worth
            is weighed against the channels that could stay in its place.

    Returns:
        Normalised importance, (U,), float64. A group of equal values becomes zeros.

    Source: Paper, eq. A10, `Norm`.
    Differs: The paper does not say over which units. The metrics of heads and of channels are mixed
        by `per_parameter` only, which suits metrics in the same unit for both (`taylor`, `fisher`:
        nats) and a budget of parameters.
    """
    if scope == "per_parameter":
        return _standardize(_positive(metric_U / space.unit_costs_U.to(metric_U)).log())
    normalized_U = torch.empty_like(metric_U)
    for kind in space.kinds:
        groups = [group for group in space.groups if group.kind == kind]
        # A unit that is alone in its layer has nothing there to be compared with.
        all_alone = all(group.count == 1 for group in groups)
        spans = [groups] if scope == "global" or all_alone else [[group] for group in groups]
        for span in spans:
            units = torch.cat([torch.arange(group.start, group.end) for group in span])
            normalized_U[units] = _standardize(metric_U[units])
    return normalized_U


def _positive(values_U: Tensor) -> Tensor:
    """Raise what is not above zero to the least value that is, so that a logarithm exists."""
    above_U = values_U[values_U > 0]
    return values_U.clamp(min=float(above_U.min())) if len(above_U) else torch.ones_like(values_U)


def _standardize(values: Tensor) -> Tensor:
    centred = values - values.mean()
    deviation = centred.square().mean().sqrt()
    scale = values.abs().max()
    # Equal values differ by rounding only; dividing by that would invent a ranking.
    if deviation <= 1e-12 * scale:
        return torch.zeros_like(values)
    return centred / deviation


def sigmoid_norm(
    normalized_U: Tensor, feasible_set: FeasibleSet, *, slope: float, shift_to_budget: bool
) -> Tensor:
    """Map a normalised metric to probabilities by a sigmoid, inside the feasible set.

    Args:
        normalized_U: Normalised importance, (U,), float64.
        feasible_set: Budget and bounds.
        slope: Factor before the sigmoid; the paper's is 1. A larger one starts more certain.
        shift_to_budget: Add one constant to each constraint's units before the sigmoid, so that
            the expected kept cost is the budget. Without it the mean is about one half whatever
            the keep ratio.

    Returns:
        Keep-probabilities, (U,), float64, feasible.

    Source: Paper, eq. A10. The shift is the authors' published code's.
    """
    logits_U = slope * normalized_U
    if shift_to_budget:
        logits_U = shift_logits(logits_U, feasible_set)
    return feasible_set.project(torch.sigmoid(logits_U))


def score_const(normalized_U: Tensor, feasible_set: FeasibleSet, *, constant: float) -> Tensor:
    """Give the units of the metric's own mask one probability and all others its complement.

    Args:
        normalized_U: Normalised importance, (U,), float64.
        feasible_set: Budget and bounds.
        constant: Probability c of the kept units, in (0.5, 1]; the paper's is 0.8.

    Returns:
        Keep-probabilities, (U,), float64, feasible.

    Source: Paper, eq. A11.
    """
    kept_U = feasible_set.deterministic_mask(normalized_U)
    chosen_U = torch.where(kept_U, constant, 1.0 - constant).to(torch.float64)
    return feasible_set.project(chosen_U)
