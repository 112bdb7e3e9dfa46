"""Moving an initial importance by gradients at the mask that it leads to.

A metric speaks of the dense model. At a mask, the gradient of a gate says, to first order, what
dropping a kept unit costs there and what bringing a dropped one back gains.

Shapes: U units, B sequences, T tokens, N sequences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.gate_gradients import GATED_KINDS, gradients_at
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.multiplied import MultipliedExecution
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.policy import FeasibleSet, MaskSpace

STEPS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Step sizes that are tried, in standard deviations of the normalised importance."""
MOMENTUM = 0.5
"""Weight of earlier rounds in the moments of the gradients."""
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
    """Step along the gradients of the gates, in the importance that ranks the units.

    Each round measures gates at the mask found so far. How far to step, other sequences decide, by
    their loss under the mask that follows; one of the choices is not to step.

    Args:
        normalized_U: The metric, normalised, (U,), float64.
        inputs: Model, units and calibration data, which the rounds share out.
        feasible_set: The budget.
        rounds: How often.

    Returns:
        The importance after the last round, (U,), float64, CPU.

    Raises:
        UserError: If a gradient is not finite.

    Source: Bengio et al. 2013 for the gradient of a mask taken for that of what it is cut from;
        Kingma and Ba 2015 (Adam) for its scale.
    Differs: Few steps of many sequences, and a line search by forward passes.
    """
    tokens_NT = torch.cat(list(inputs.batches()))
    batch_size = max(len(batch_BT) for batch_BT in inputs.calibration_batches())
    importance_U = normalized_U
    mean_U, square_U = torch.zeros_like(normalized_U), torch.zeros_like(normalized_U)
    for number, part_NT in enumerate(tokens_NT.tensor_split(rounds)):
        measured_NT, judging_NT = part_NT.tensor_split([len(part_NT) * 3 // 4])
        mask_U = feasible_set.deterministic_mask(importance_U)
        moments = _gate_moments(inputs, mask_U, measured_NT.split(batch_size))
        weight = MOMENTUM if number else 0.0
        mean_U, square_U = (
            mean_U.lerp(moments[0], 1 - weight),
            square_U.lerp(moments[1], 1 - weight),
        )
        direction_U = step_direction(mean_U, square_U)
        choices = [importance_U, *(importance_U + step * direction_U for step in STEPS)]
        losses = [
            _mean_loss(inputs, feasible_set.deterministic_mask(choice_U), judging_NT, batch_size)
            for choice_U in choices
        ]
        importance_U = choices[losses.index(min(losses))]
    return importance_U


def step_direction(mean_U: Tensor, square_U: Tensor) -> Tensor:
    """Against the gradient, each unit by how much the sequences agree on its sign.

    Args:
        mean_U: Mean of the gate gradients over sequences, (U,).
        square_U: Mean of their squares, (U,).

    Returns:
        In [-1, 1], (U,): 1 where every sequence would lose as much without the unit, 0 where its
        gradients cancel or are zero.
    """
    return torch.where(square_U > 0, -mean_U / square_U.sqrt(), 0.0)


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
