"""The deterministic mask of a budget: its most probable units, or whole blocks of them.

Blocks are what fast kernels and devices that share a layer want: multiples of a number of units.

Shapes: N free units of one budget, n units of one group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy.unit_layout import UnitGroup, UnitKind

SORTED_AT_ONCE = 2**12
"""Units that are sorted as they are; more are split at their mean first."""


def top_units(s_N: Tensor, costs_N: Tensor, limit: float) -> Tensor:
    """Go down from the most probable unit, and keep every one that still fits.

    Only units near the last one that fits are sorted: those above fit together.

    Args:
        s_N: What ranks the units, (N,); equal ones rank by index.
        costs_N: Their costs, (N,) float64, positive.
        limit: Cost of all that are kept, at most.

    Returns:
        Which units are kept, (N,) bool.
    """
    kept_N, cheapest = torch.zeros_like(s_N, dtype=torch.bool), float(costs_N.min())
    parts = [torch.arange(len(s_N), device=s_N.device)]  # the last one ranks first
    while parts and limit >= cheapest:
        units = parts.pop()
        s, costs = s_N.index_select(0, units), costs_N.index_select(0, units)
        if float(costs.sum()) > limit:
            is_above = s > s.mean()
            # The mean of equal scores can round to below all of them.
            if len(units) > SORTED_AT_ONCE and 0 < int(is_above.sum()) < len(units):
                parts += [units.masked_select(~is_above), units.masked_select(is_above)]
                continue
            ranked = s.argsort(descending=True, stable=True)
            fits = ranked[greedy_knapsack(costs[ranked], limit)]
            units, costs = units[fits], costs[fits]
        kept_N[units] = True
        limit -= float(costs.sum())
    return kept_N


def greedy_knapsack(costs_N: Tensor, limit: float) -> Tensor:
    """Go down a ranking and keep every unit that still fits.

    Each round keeps the longest run that fits; the unit after it fits no more, nor does any that
    costs as much. So there are at most as many rounds as different costs.

    Args:
        costs_N: Costs of the units, the first first, (N,) float64.
        limit: Cost of all that are kept, at most.

    Returns:
        Which of them are kept, (N,) bool.
    """
    kept_N = torch.zeros_like(costs_N, dtype=torch.bool)
    candidates = torch.arange(len(costs_N), device=costs_N.device)
    left = limit
    while len(candidates):
        spent = costs_N[candidates].cumsum(0)
        run = int((spent <= left).sum())
        kept_N[candidates[:run]] = True
        left -= float(spent[run - 1]) if run else 0.0
        candidates = candidates[run:]
        candidates = candidates[costs_N[candidates] <= left]
    return kept_N


def unit_multiples(
    round_to: int, tensor_parallel: int, channels_per_unit: int = 1
) -> dict[UnitKind, int]:
    """How many units of each kind stay or go together in a layer.

    Args:
        round_to: MLP channels of a layer are a multiple of this.
        tensor_parallel: Devices that share each layer, and so its KV groups and its channels.
        channels_per_unit: MLP channels in a unit.

    Returns:
        The multiples of kinds that have one; empty if both numbers are 1.

    Raises:
        UserError: A number is not positive.
    """
    for name, number in (("round_to", round_to), ("tensor_parallel", tensor_parallel)):
        if number < 1:
            raise UserError(f"{name}: must be at least 1, which asks for nothing; given {number}.")
    channels = math.lcm(round_to, tensor_parallel)
    multiples: dict[UnitKind, int] = {
        "kv_group": tensor_parallel,
        "mlp_channel": channels // math.gcd(channels, channels_per_unit),
    }
    return {kind: multiple for kind, multiple in multiples.items() if multiple > 1}


@dataclass(frozen=True)
class BlockedGroup:
    """The units of one kind in one layer, of which only whole blocks stay.

    Args:
        start: Place of the group's first unit among those of its budget.
        end: Place after its last.
        size: Units of a block.
        unit_cost: Cost of each unit.
        least: Blocks that stay in every mask.
        most: Blocks that may stay.
    """

    start: int
    end: int
    size: int
    unit_cost: float
    least: int
    most: int


def blocked_groups(
    groups: Sequence[UnitGroup],
    costs_N: Tensor,
    multiples: Mapping[UnitKind, int],
    limit: float,
    bounds: Sequence[tuple[int, int]],
) -> tuple[BlockedGroup, ...]:
    """Lay blocks over the free units of a budget.

    Args:
        groups: Its free groups, one after another.
        costs_N: Cost of each unit, (N,).
        multiples: Units in a block, by kind; 1 for kinds that are left out.
        limit: Kept cost that is allowed.
        bounds: Fewest and most units of each group. Where no multiple lies between them, or the
            minima together exceed the limit, minima are rounded down.

    Returns:
        The groups with their blocks.

    Raises:
        UserError: A group is smaller than a block, or the budget holds not a single one.
    """
    sizes = [multiples.get(group.kind, 1) for group in groups]
    for group, size in zip(groups, sizes, strict=True):
        if group.count < size:
            raise UserError(
                f"round_to, tensor_parallel: {size} units of {group.kind} stay together, but layer "
                f"{group.layer} has only {group.count}. Give smaller numbers."
            )
    ends = list(accumulate(group.count for group in groups))
    costs = [float(costs_N[end - 1]) for end in ends]
    most = [high // size for (_, high), size in zip(bounds, sizes, strict=True)]
    least = [-(-low // size) for (low, _), size in zip(bounds, sizes, strict=True)]
    least = list(map(min, least, most))
    if sum(map(mul, map(mul, least, sizes), costs)) > limit:
        least = [low // size for (low, _), size in zip(bounds, sizes, strict=True)]
    cheapest = min(map(mul, sizes, costs))
    if cheapest > limit:
        raise UserError(
            f"round_to, tensor_parallel: a block of units that stay together costs {cheapest:.0f}, "
            f"and the budget allows {limit:.0f}. Give smaller numbers, or a larger keep ratio."
        )
    return tuple(map(BlockedGroup, [0, *ends], ends, sizes, costs, least, most))


def kept_blocks(s_N: Tensor, groups: Sequence[BlockedGroup], limit: float) -> Tensor:
    """Keep the most probable blocks, as many as fit.

    The blocks of a group are its units by falling probability, so their mean probabilities fall as
    well and the first ones go before the later ones. All blocks are ranked by that mean, and each
    that still fits is kept. Where all blocks cost the same, no mask of whole blocks within the
    budget has a larger sum of probabilities. With blocks of one unit this is
    `FeasibleSet.deterministic_mask`.

    Args:
        s_N: Probabilities of the free units, (N,).
        groups: The groups, which together hold all of them.
        limit: Kept cost that is allowed.

    Returns:
        The mask, (N,) bool.
    """
    on_host_N = s_N.detach().cpu()  # once, and not for every block
    kept_N = torch.zeros_like(on_host_N, dtype=torch.bool)
    candidates: list[tuple[float, Tensor, float]] = []
    for group in groups:
        s_n = on_host_N[group.start : group.end]
        ranked_n = group.start + s_n.argsort(descending=True, stable=True)
        blocks = ranked_n[: group.most * group.size].split(group.size) if group.most else ()
        for number, units in enumerate(blocks):
            cost = group.size * group.unit_cost
            if number < group.least:
                kept_N[units] = True
                limit -= cost
            else:
                candidates.append((float(on_host_N[units].double().mean()), units, cost))
    for _, units, cost in sorted(candidates, key=lambda block: -block[0]):
        if cost <= limit:
            kept_N[units] = True
            limit -= cost
    return kept_N.to(s_N.device)
