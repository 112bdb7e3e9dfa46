"""From the gradient by keep-probabilities to that by logits which are shifted to the budget.

Shapes: U units, N free units of one constraint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgprune_lightning.policy import FeasibleSet


def logit_gradient(
    gradient_U: Tensor, keep_probabilities_U: Tensor, feasible_set: FeasibleSet
) -> Tensor:
    """Differentiate through s = sigmoid(x + b), where b holds each budget's expected cost.

    With w = s (1 - s), by implicit differentiation of `sum(c s) = limit`,
    `dL/dx_u = w_u (g_u - c_u sum(w g) / sum(w c))`: what a unit is worth less what its cost is
    worth elsewhere. Adam divides by each unit's own size of gradient; without the second term it
    would raise all units that are worth anything alike.

    Args:
        gradient_U: dL/ds, g, (U,) float64.
        keep_probabilities_U: The probabilities s, (U,) float64, inside the budgets' bounds.
        feasible_set: The budgets and their costs c.

    Returns:
        dL/dx, (U,) float64; 0 for protected units, and where s is 0 or 1.
    """
    by_logit_U = torch.zeros_like(gradient_U)
    for constraint in feasible_set.constraints_on(gradient_U.device):
        units = constraint.units
        costs_N = constraint.costs
        slopes_N = keep_probabilities_U[units] * (1 - keep_probabilities_U[units])
        price = (slopes_N @ gradient_U[units]) / (slopes_N @ costs_N).clamp_min(
            torch.finfo(costs_N.dtype).tiny
        )
        by_logit_U[units] = slopes_N * (gradient_U[units] - costs_N * price)
    return by_logit_U
