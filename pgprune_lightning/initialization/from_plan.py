"""Starting from the policy of an earlier run."""

from __future__ import annotations

from pathlib import Path

from pgprune_lightning.errors import UserError
from pgprune_lightning.plan import PruningPlan, find_plan
from pgprune_lightning.policy import MaskSpace


def load_start_plan(path: str, space: MaskSpace, base_model: str) -> PruningPlan:
    """Read a plan to start from, and check that it is for these units.

    Args:
        path: A plan's folder, or a run's.
        space: The units of the model that is to be pruned.
        base_model: That model, as the user named it.

    Raises:
        UserError: If the plan is missing, damaged, or for other units.
    """
    plan = PruningPlan.load(find_plan(Path(path)))
    if plan.space != space:
        raise UserError(
            f"initialization.plan: {path} is for the units of {plan.base_model.source!r} "
            f"({plan.space.num_units} of kind {', '.join(plan.space.kinds)}); {base_model!r} has "
            f"{space.num_units} of kind {', '.join(space.kinds)}."
        )
    return plan
