"""Other masks of a plan's probabilities: another keep ratio, or widths in multiples.

Shapes: U units.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedConfig

from pgprune_lightning.masking.decoder_family import decoder_layers
from pgprune_lightning.masking.frozen_model import model_on_meta
from pgprune_lightning.plan import PruningPlan
from pgprune_lightning.policy import FeasibleSet, UnitKind, unit_multiples

Multiples = Mapping[UnitKind, int]
"""Units of a kind that stay or go together in a layer."""


def ranking(plan: PruningPlan) -> Tensor:
    """What orders a plan's units: their probabilities, and among equals the plan's own mask, (U,).

    Probabilities that have reached a bound are equal; what the run ranked them by is in its mask.
    """
    return plan.keep_probabilities_U + 1e-9 * plan.mask_U


def mask_at(plan: PruningPlan, keep_ratio: float, multiples: Multiples) -> Tensor:
    """Cut a mask from a plan's probabilities, under the kind of budget it was learned under.

    Args:
        plan: The plan.
        keep_ratio: Share that stays, in (0, 1].
        multiples: Units that stay or go together.

    Returns:
        The mask, (U,), bool.

    Raises:
        UserError: The budget is impossible.
    """
    budget = plan.budget
    feasible_set = FeasibleSet(
        plan.space,
        keep_ratio,
        scope=budget["scope"],
        protected_layers=budget["protected_layers"],
        layer_keep_ratios=tuple(budget.get("layer_keep_ratios", (0.0, 1.0))),
        multiples=multiples,
    )
    return feasible_set.deterministic_mask(ranking(plan))


def plan_multiples(
    plan: PruningPlan, config: PreTrainedConfig, round_to: int | None, tensor_parallel: int | None
) -> dict[UnitKind, int]:
    """The multiples that an export's masks keep: those given, or else those of the run.

    Args:
        plan: The plan.
        config: The dense model's.
        round_to: Multiple of MLP channels; None: the run's.
        tensor_parallel: Devices that share a layer; None: the run's.

    Raises:
        UserError: A number is not positive.
    """
    if round_to is None:
        round_to = int(plan.budget.get("round_to", 1))
    if tensor_parallel is None:
        tensor_parallel = int(plan.budget.get("tensor_parallel", 1))
    if "mlp_channel" not in plan.space.kinds:
        return unit_multiples(round_to, tensor_parallel)
    width = decoder_layers(model_on_meta(config))[0].mlp.num_channels
    channels_per_unit = width // plan.space.group(0, "mlp_channel").count
    return unit_multiples(round_to, tensor_parallel, channels_per_unit)
