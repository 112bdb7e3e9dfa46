"""Ranking units again at the mask that a metric leads to, where gradients say what a swap changes.

A metric speaks of the dense model. At a mask, the gradient of a gate says, to first order, what
dropping a kept unit costs there and what bringing a dropped one back gains; its mean square over
sequences stands for the curvature.

Shapes: U units, B sequences, T tokens, N sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.gate_gradients import GATED_KINDS, gradients_at
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.multiplied import MultipliedExecution
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.policy import FeasibleSet, MaskSpace

DAMPINGS = (1.5, 2.0, 3.0, 4.0, 6.0)
"""Factors of the curvature that are tried; the greater, the fewer units change places."""
SEQUENCES_PER_ROUND = 4
"""At least; a quarter of a round's sequences judges what the others propose."""


def check_refinement(rounds: int, num_blocks: int) -> None:
    """Refuse rounds that could not be taken, before a model is loaded.

    Raises:
        UserError: If their number is negative, or there is too little text for so many.
    """
    if rounds < 0:
        raise UserError(f"initialization.refine_rounds: 0 rounds or more, given {rounds}.")
    if num_blocks < SEQUENCES_PER_ROUND * rounds:
        raise UserError(
            f"initialization.refine_rounds: {rounds} rounds share out num_blocks = {num_blocks} "
            f"sequences and need {SEQUENCES_PER_ROUND} each; lower it, or raise num_blocks."
        )


def check_refined_kinds(space: MaskSpace) -> None:
    """Refuse units that have no gates.

    Raises:
        UserError: If there is such a kind.
    """
    kinds = [kind for kind in space.kinds if kind not in GATED_KINDS]
    if kinds:
        raise UserError(
            f"initialization.refine_rounds: units of kind {', '.join(kinds)} have no gates; leave "
            f"it at 0, or prune {', '.join(GATED_KINDS)}."
        )


@torch.no_grad()
def refined(
    normalized_U: Tensor, inputs: MetricInputs, feasible_set: FeasibleSet, rounds: int
) -> Tensor:
    """Let units change places where that lowers the loss to second order.

    Each round measures gates at the mask found so far and ranks all units by what they are worth
    there. How far the model of second order is trusted, several dampings of its curvature, other
    sequences decide by their loss under the mask that follows, beside the mask there is.

    Args:
        normalized_U: The metric, normalised, (U,), float64.
        inputs: Model, units and calibration data, which the rounds share out.
        feasible_set: The budget.
        rounds: How often.

    Returns:
        The values of `normalized_U` in another order, (U,), float64, CPU; the deterministic mask
        of their order is the best that was found.

    Raises:
        UserError: If a gradient is not finite.

    Source: Hassibi and Stork 1993 and Kwon et al. 2022 for pruning to second order with Fisher
        information; Levenberg 1944 and Marquardt 1963 for the damping.
    Differs: Units come back as well as leave, and the curvature is the diagonal of the empirical
        Fisher information of a token, that of a sequence times its tokens.
    """
    tokens_NT = torch.cat(list(inputs.batches()))
    batch_size = max(len(batch_BT) for batch_BT in inputs.calibration_batches())
    costs_U = feasible_set.costs_U
    ranking_U = normalized_U
    squares = _RunningMean()
    for part_NT in tokens_NT.tensor_split(rounds):
        measured_NT, judging_NT = part_NT.tensor_split([len(part_NT) * 3 // 4])
        mask_U = feasible_set.deterministic_mask(ranking_U)
        gradient_U, square_U = _gate_moments(inputs, mask_U, measured_NT.split(batch_size))
        curvature_U = squares.add(square_U) * (tokens_NT.shape[1] - 1)
        rankings = [ranking_U] + [
            unit_worth(gradient_U, damping * curvature_U, mask_U) / costs_U for damping in DAMPINGS
        ]
        losses = [
            _mean_loss(inputs, feasible_set.deterministic_mask(ranking), judging_NT, batch_size)
            for ranking in rankings
        ]
        ranking_U = rankings[losses.index(min(losses))]
    return _in_the_order_of(ranking_U, normalized_U)


def unit_worth(gradient_U: Tensor, curvature_U: Tensor, mask_U: Tensor) -> Tensor:
    """What having a unit is worth at a mask, to second order.

    Of masks that differ from this one by swaps of units of equal cost, the top of this ranking has
    the least `sum(gradient * d + curvature / 2 * d^2)`, d being the change of the mask.

    Args:
        gradient_U: Of the loss by the units' gates, at the mask, (U,).
        curvature_U: Of the loss, by each gate, (U,).
        mask_U: The mask, (U,), bool.

    Returns:
        Nats per token, (U,): what a kept unit's loss would cost, what a dropped one would gain.
    """
    return -gradient_U + torch.where(mask_U, 0.5, -0.5) * curvature_U


@dataclass
class _RunningMean:
    """The curvature changes little from mask to mask: all rounds' sequences speak for it."""

    total_U: Tensor | float = 0.0
    count: int = 0

    def add(self, values_U: Tensor) -> Tensor:
        self.total_U = self.total_U + values_U
        self.count += 1
        return self.total_U / self.count


def _gate_moments(
    inputs: MetricInputs, mask_U: Tensor, batches: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Mean and mean square over sequences of the gate gradients at a mask, (U,) each."""
    gradients_BU = torch.cat([gradients_at(inputs, mask_U, batch_BT) for batch_BT in batches])
    if not bool(gradients_BU.isfinite().all()):
        raise UserError(
            "initialization.refine_rounds: a gradient is not finite on this model; try model.dtype "
            "float32, or leave it at 0."
        )
    return gradients_BU.mean(dim=0), gradients_BU.square().mean(dim=0)


def _mean_loss(inputs: MetricInputs, mask_U: Tensor, tokens_NT: Tensor, batch_size: int) -> float:
    """Mean token loss of the masked model, in nats per token."""
    with MultipliedExecution(inputs.model, inputs.space).masked(mask_U) as model:
        sums = [
            float(token_nll(model, batch_BT).sum(dtype=torch.float64))
            for batch_BT in tokens_NT.split(batch_size)
        ]
    total = sum(sums)
    return total if math.isfinite(total) else math.inf


def _in_the_order_of(ranking_U: Tensor, values_U: Tensor) -> Tensor:
    """The same values, the greatest where the ranking is greatest; equal ranks by flat index."""
    ordered_U = torch.empty_like(values_U)
    places = ranking_U.argsort(descending=True, stable=True)
    ordered_U[places] = values_U.sort(descending=True).values
    return ordered_U
