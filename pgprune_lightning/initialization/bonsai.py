"""Bonsai: importance by regression, from the losses of sampled sub-networks.

Sub-networks come in pairs. Each unit is dropped by the first, by the second, or by neither, and
both read the same batch. About the middle of the two, the loss as a function of the mask has a
Taylor series of which half their difference holds the odd terms alone: no constant, no interaction
of two units. So it is linear in the units that tell the pair apart, up to third order.

Shapes: U units, P pairs, N units of a kind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.initialization.projection_inputs import PROJECTIONS
from pgprune_lightning.initialization.wanda_sp import wanda_sp_metric
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.policy import UnitLayout

NUM_PAIRS = 128
"""Pairs of sub-networks; each costs two forward passes of one calibration batch."""

DROP_SHARE = 0.1
"""Share of the units that one sub-network lacks, on average over the units of a group."""

PENALTIES = tuple(10.0**exponent for exponent in range(-6, 4))
"""Ridge penalties to choose from, relative to what one kind's part of the design weighs."""


@torch.no_grad()
def bonsai_metric(inputs: MetricInputs) -> Tensor:
    """Importance of a unit by its coefficient in a regression of the loss on the dropped units.

    All units are regressed together. The ridge pulls them not to zero but to a prior, so that a
    unit of which the samples say little keeps its rank by the prior: Wanda-sp for KV groups and
    channels, equality for all other kinds. The prior's scale is that of the loss: by it alone,
    each kind would account for the same part of what sub-networks lose on average. It also says
    where to look: the less a unit matters by the prior, the more often it is dropped.

    Args:
        inputs: Model, unit layout, calibration batches, and the seed of the sub-networks.

    Returns:
        Importance, (U,), float64, CPU: what dropping the unit adds to the loss, in nats per token.

    Raises:
        UserError: If there is no calibration batch.

    Source: Dery et al. 2024 (Bonsai), arXiv 2402.05406.
    Differs: One round instead of many small ones that each prune 5 % and measure anew. A pair
        reads one batch, the batches in turn, not all text for all pairs. The published code keeps
        fixed the units that the prior finds best; here they are only dropped rarely, since one
        round serves every keep ratio. Its prior is the activation alone, by value, where ranks
        decide here. It regresses perplexities, each by itself, by gradient descent from the prior,
        with an L1 penalty by default and hyper-parameters chosen by the rank correlation over
        five folds; this is the ridge's closed form on differences of the mean token loss, its
        penalty chosen by leaving out one pair at a time.
    """
    batches = inputs.batches()
    prior_U = _prior(inputs)
    drop_U = drop_probabilities(prior_U, inputs.space)
    generator = torch.Generator().manual_seed(inputs.seed)
    pairs = [draw_pair(drop_U, generator) for _ in range(NUM_PAIRS)]
    half_differences_P, increases_P = _measure(inputs, batches, pairs)

    halves = [(first_U.double() - second_U.double()) / 2 for first_U, second_U in pairs]
    design_PU = torch.stack(halves)
    # Its size only: that sub-networks may read better by chance does not turn the prior around.
    increase = abs(float(increases_P.mean()))
    centre_U = _scaled_prior(prior_U, drop_U, inputs.space, increase)
    variance_U = _unit_variances(design_PU, inputs.space)
    return ridge_coefficients(design_PU, half_differences_P, centre_U, variance_U)


def _measure(
    inputs: MetricInputs, batches: list[Tensor], pairs: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Half the difference of each pair's losses, and their mean's distance to the dense loss."""
    execution = DenseMaskedExecution(inputs.model, inputs.space)

    def loss_without(dropped_U: Tensor, batch_BT: Tensor) -> float:
        with execution.masked(~dropped_U) as model:
            return float(token_nll(model, batch_BT).mean(dtype=torch.float64))

    nothing_U = torch.zeros(inputs.space.num_units, dtype=torch.bool)
    # Each its own batch: of the dense model all, of the first and second network in turn.
    number, parts = len(batches), inputs.measurement.parts
    dense = torch.zeros(number, dtype=torch.float64)
    for batch in parts("Measuring the dense model", number, {"dense": dense}, unit="batch"):
        dense[batch] = loss_without(nothing_U, batches[batch])
    first_P, second_P = torch.zeros(2, len(pairs), dtype=torch.float64)
    sums = {"first_P": first_P, "second_P": second_P}
    for pair in parts("Measuring bonsai", len(pairs), sums, unit="pair"):
        first_P[pair] = loss_without(pairs[pair][0], batches[pair % number])
        second_P[pair] = loss_without(pairs[pair][1], batches[pair % number])
    dense_P = dense[torch.arange(len(pairs)) % number]
    return (first_P - second_P) / 2, (first_P + second_P) / 2 - dense_P


def _prior(inputs: MetricInputs) -> Tensor:
    """Importance before any sub-network is looked at, (U,), 1 on average in each group."""
    if not set(inputs.space.kinds) <= set(PROJECTIONS):
        return torch.ones(inputs.space.num_units, dtype=torch.float64)
    prior_U = wanda_sp_metric(inputs)
    for group in inputs.space.groups:
        values = prior_U[group.start : group.end]
        mean = values.mean()
        prior_U[group.start : group.end] = values / mean if mean > 0 else 1.0
    return prior_U


def drop_probabilities(prior_U: Tensor, space: UnitLayout) -> Tensor:
    """How often a sub-network lacks each unit: in a group linear in the prior's rank.

    Args:
        prior_U: Prior importance, (U,); only its order within a group counts.
        space: The units.

    Returns:
        Probabilities, (U,), float64: of mean `DROP_SHARE` in each group, from nearly twice that
        for its least important unit to nearly 0 for its most important; equal where priors are.
    """
    drop_U = torch.empty(space.num_units, dtype=torch.float64)
    for group in space.groups:
        values = prior_U[group.start : group.end].contiguous()
        ranked = values.sort().values
        # The mean rank of equals, from 0 to 1: how much lies below and half of what is level.
        below = torch.searchsorted(ranked, values) + torch.searchsorted(ranked, values, right=True)
        drop_U[group.start : group.end] = 2 * DROP_SHARE * (1 - below.double() / (2 * group.count))
    return drop_U


def draw_pair(drop_U: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw what two sub-networks lack.

    Args:
        drop_U: Probability that a unit is dropped by the first, and as much by the second, (U,).
        generator: Source of the randomness.

    Returns:
        Two masks of dropped units, (U,), bool; no unit is in both.
    """
    uniform_U = torch.rand(len(drop_U), generator=generator, dtype=torch.float64)
    return uniform_U < drop_U, (uniform_U >= drop_U) & (uniform_U < 2 * drop_U)


def _scaled_prior(prior_U: Tensor, drop_U: Tensor, space: UnitLayout, increase: float) -> Tensor:
    centre_U = torch.empty_like(prior_U)
    for kind in space.kinds:
        units_N = space.units_of(kind)
        expected = drop_U[units_N] @ prior_U[units_N]
        centre_U[units_N] = prior_U[units_N] * (increase / len(space.kinds) / expected)
    return centre_U


def _unit_variances(design_PU: Tensor, space: UnitLayout) -> Tensor:
    """Variances by which every kind explains as much, however many units it has, (U,)."""
    variance_U = torch.empty(space.num_units, dtype=torch.float64)
    for kind in space.kinds:
        units_N = space.units_of(kind)
        weight = design_PU[:, units_N].square().sum(1).mean()
        variance_U[units_N] = 1 / weight.clamp_min(torch.finfo(torch.float64).tiny)
    return variance_U


def ridge_coefficients(
    design_PU: Tensor, target_P: Tensor, centre_U: Tensor, variance_U: Tensor
) -> Tensor:
    """Solve the ridge regression about a centre, with the penalty that predicts best.

    It minimises `|target - design w|^2 + penalty * sum((w - centre)^2 / variance)` over w, in its
    dual: the linear system has as many unknowns as there are pairs, not units. A penalty is judged
    by the squared error on each pair of the fit to all others, which has a closed form.

    Args:
        design_PU: What tells the sub-networks of each pair apart, (P, U), float64.
        target_P: Half the difference of their losses, (P,), float64, in nats per token.
        centre_U: What the coefficients are pulled to, (U,), float64.
        variance_U: How freely each may leave it, (U,), float64, positive.

    Returns:
        The coefficients w, (U,), float64.
    """
    residual_P = target_P - design_PU @ centre_U
    spread_PU = design_PU * variance_U
    gram_PP = spread_PU @ design_PU.T
    best_error, best_dual_P = float("inf"), torch.zeros_like(residual_P)
    for penalty in PENALTIES:
        inverse_PP = torch.linalg.inv(gram_PP + penalty * torch.eye(len(gram_PP)).to(gram_PP))
        dual_P = inverse_PP @ residual_P
        error = float((dual_P / inverse_PP.diagonal()).square().mean())
        if error < best_error:
            best_error, best_dual_P = error, dual_P
    return centre_U + spread_PU.T @ best_dual_P
