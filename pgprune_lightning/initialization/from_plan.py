"""Starting from the policy of an earlier run.

Shapes: U units, N units of one budget.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PruningPlan, find_plan
from pgprune_lightning.policy import FeasibleSet, UnitLayout


def load_start_plan(path: str, space: UnitLayout, base_model: str) -> PruningPlan:
    """Read a plan to start from, and check that it is for these units.

    Args:
        path: A plan's folder, or a run's.
        space: The units of the model that is to be pruned.
        base_model: That model, as the user named it.

    Raises:
        UserError: If the plan is missing, damaged, or for other units.
    """
    plan = PruningPlan.load(find_plan(Path(path)))
    if plan.space.groups != space.groups:
        raise UserError(
            f"initialization.plan: {path} is for the units of {plan.base_model.source!r} "
            f"({plan.space.num_units} of kind {', '.join(plan.space.kinds)}); {base_model!r} has "
            f"{space.num_units} of kind {', '.join(space.kinds)}."
        )
    return plan


def ranked_as(mask_U: Tensor, logits_U: Tensor, feasible_set: FeasibleSet) -> Tensor:
    """Move logits as little as it takes for a mask to be the top of the budget.

    Policies that explore around a ranking note how often their samples keep each unit, and where
    units move by different widths those probabilities rank them otherwise than the mask does.

    Args:
        mask_U: A mask, (U,), bool.
        logits_U: What ranks the units, (U,), float64.
        feasible_set: The budget.

    Returns:
        (U,), float64: the logits, in each budget raised for kept units and lowered for dropped ones
        to the value that as many units reach as are kept. As they were, if the mask is none that
        this budget would return.
    """
    ranked_U = logits_U.clone()
    for constraint in feasible_set.constraints:
        logits_N, kept_N = logits_U[constraint.units], mask_U[constraint.units]
        if not kept_N.any():
            continue
        least = float(logits_N.topk(int(kept_N.sum())).values[-1])
        below = math.nextafter(least, -math.inf)
        ranked_N = torch.where(kept_N, logits_N.clamp(min=least), logits_N.clamp(max=below))
        ranked_U[constraint.units] = ranked_N
    is_returned = torch.equal(feasible_set.deterministic_mask(ranked_U), mask_U)
    return ranked_U if is_returned else logits_U
