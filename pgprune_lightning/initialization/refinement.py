"""Moving an initial importance by gradients at the masks that it leads to.

A metric speaks of the dense model. At a mask, the gradient of a gate says, to first order, what
dropping a kept unit costs there and what bringing a dropped one back gains.

Shapes: U units, B sequences, T tokens, N sequences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.initialization.gate_gradients import gradients_at
from pgprune_lightning.initialization.metric import MetricInputs
from pgprune_lightning.masking.dense_masked import DenseMaskedExecution
from pgprune_lightning.masking.token_loss import token_nll
from pgprune_lightning.policy import FeasibleSet

STEP_SIZE = 0.06
"""Of the first step, in standard deviations of the importance; it falls by a cosine to 0."""
MEAN_DECAY, SQUARE_DECAY = 0.95, 0.99
"""Weight of earlier steps in the moments of the gradient."""
SEQUENCES_PER_STEP = 4
JUDGING_SHARE = 1 / 8
"""Of the sequences: they take no part in the steps, and say whether these have helped."""


def check_refinement(steps: int, num_blocks: int) -> None:
    """Refuse steps that could not be taken, before a model is loaded.

    Raises:
        UserError: If their number is negative, or there is too little text.
    """
    if steps < 0:
        raise UserError(f"initialization.refine_steps: 0 steps or more, given {steps}.")
    if steps and num_blocks < 2:
        raise UserError(
            "initialization.refine_steps: one sequence for the steps and one to judge them by are "
            f"the least; num_blocks is {num_blocks}."
        )


@torch.no_grad()
def refined(
    normalized_U: Tensor, inputs: MetricInputs, feasible_set: FeasibleSet, steps: int
) -> Tensor:
    """Step along the gradients of the gates, in the importance that ranks the units.

    Args:
        normalized_U: The metric, normalised, (U,), float64.
        inputs: Model, units and calibration data, which the steps read in turn.
        feasible_set: The budget.
        steps: How many.

    Returns:
        The mean importance of the later half of the steps, (U,), float64, CPU; or the metric as it
        was, if its mask has the lower loss on sequences that the steps have not seen.

    Raises:
        UserError: If a gradient is not finite.

    Source: Bengio et al. 2013 (straight-through) for the gradient of a mask taken for that of what
        it is cut from; Kingma and Ba 2015 (Adam) for the steps; Polyak and Juditsky 1992 for their
        mean, in which what the text of single steps moved to and fro cancels.
    """
    tokens_NT = torch.cat(inputs.batches())
    judging = max(1, int(len(tokens_NT) * JUDGING_SHARE))
    measured_NT, judging_NT = tokens_NT.tensor_split([len(tokens_NT) - judging])
    importance_U = normalized_U.clone()
    mean_U, square_U = torch.zeros_like(importance_U), torch.zeros_like(importance_U)
    averaged_U = torch.zeros_like(importance_U)
    sums = {
        "importance_U": importance_U,
        "mean_U": mean_U,
        "square_U": square_U,
        "averaged_U": averaged_U,
    }
    for step in inputs.measurement.parts("Refining the start", steps, sums, unit="step"):
        mask_U = feasible_set.deterministic_mask(importance_U)
        gradient_U = _gradient(inputs, mask_U, _sequences_of(step, measured_NT))
        mean_U.lerp_(gradient_U, 1 - MEAN_DECAY)
        square_U.lerp_(gradient_U.square(), 1 - SQUARE_DECAY)
        size = STEP_SIZE * (1 + math.cos(math.pi * step / steps)) / 2
        importance_U += size * _direction(mean_U, square_U, step + 1)
        if (averaged := step - steps // 2) >= 0:
            averaged_U.lerp_(importance_U, 1 / (averaged + 1))
    before, after = (
        _total_loss(inputs, feasible_set.deterministic_mask(ranking_U), judging_NT)
        for ranking_U in (normalized_U, averaged_U)
    )
    return averaged_U if after < before else normalized_U


def _sequences_of(step: int, tokens_NT: Tensor) -> Tensor:
    """Those of a step, (B, T): all in turn, from the first again after the last."""
    rows_B = torch.arange(min(SEQUENCES_PER_STEP, len(tokens_NT))) + step * SEQUENCES_PER_STEP
    return tokens_NT[rows_B % len(tokens_NT)]


def _gradient(inputs: MetricInputs, mask_U: Tensor, batch_BT: Tensor) -> Tensor:
    gradient_U = gradients_at(inputs, mask_U, batch_BT).mean(dim=0)
    if not bool(gradient_U.isfinite().all()):
        raise UserError(
            "initialization.refine_steps: a gradient is not finite on this model; try "
            "model.execution.dtype float32, or leave it at 0."
        )
    return gradient_U


def _direction(mean_U: Tensor, square_U: Tensor, steps: int) -> Tensor:
    """Adam's, (U,): about 1 in size where steps agree on the sign; 0 where there is no gradient."""
    mean_U = mean_U / (1 - MEAN_DECAY**steps)
    size_U = (square_U / (1 - SQUARE_DECAY**steps)).sqrt()
    return torch.where(size_U > 0, -mean_U / size_U, 0.0)


def _total_loss(inputs: MetricInputs, mask_U: Tensor, tokens_NT: Tensor) -> float:
    """Token loss of the masked model, summed, in nats; infinite where it is not finite."""
    with DenseMaskedExecution(inputs.model, inputs.space).masked(mask_U) as model:
        sums = [
            float(token_nll(model, batch_BT).sum(dtype=torch.float64))
            for batch_BT in tokens_NT.split(SEQUENCES_PER_STEP)
        ]
    total = sum(sums)
    return total if math.isfinite(total) else math.inf
