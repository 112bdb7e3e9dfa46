"""The feasible set of keep-probabilities: project onto it, and cut one mask from it.

Shapes: U units of the whole model, N free units of one constraint, n units of one group, B blocks,
S masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pgprune_lightning.policy.budget import (
    ANY_RATIO,
    BudgetScope,
    Constraint,
    GroupBlocks,
    build_constraints,
    scope_costs,
)
from pgprune_lightning.policy.projection import project_within_groups
from pgprune_lightning.policy.unit_layout import UnitKind, UnitLayout


class FeasibleSet:
    """The keep-probabilities that meet every budget, with some layers kept whole.

    Args:
        space: The units.
        keep_ratio: Share of the cost to keep, above 0 and at most 1.
        scope: Extent of a budget: `per_kind`, the units of each kind; `per_layer`, those of each
            kind in each layer; `units`, all units alike; `parameters`, all units by their
            parameters. A limit is rounded down to a whole unit or parameter.
        protected_layers: Layers whose units all stay, negative from the end. They count in the
            budget, but a budget without free units is dropped.
        lower: Least keep probability of the free units.
        upper: Greatest keep probability of the free units; 1 in a constraint whose budget cannot
            be reached below that.
        fill: Meet the budgets exactly, not only at most.
        layer_keep_ratios: Least and greatest share that each kind keeps of its units in each layer
            that is not protected, in masks and in expectation, rounded to whole units (see
            `bound_groups`).
        multiples: Units of a kind that deterministic masks keep or drop together in each layer.
            Probabilities do not depend on it.

    Attributes:
        constraints: The budgets.
        costs_U: Cost of each unit in a budget: its parameters, or 1, (U,) float64, CPU.

    Raises:
        UserError: The ratio or a bound is out of range, a layer does not exist, or a budget is
            impossible.

    Source: eq. 3 (`units`); the paper's code (`per_kind`).
    Differs: `parameters`, protected layers, all bounds and `fill` are not in the paper.
    """

    def __init__(
        self,
        space: UnitLayout,
        keep_ratio: float,
        *,
        scope: BudgetScope = "per_kind",
        protected_layers: Sequence[int] = (),
        lower: float = 0.0,
        upper: float = 1.0,
        fill: bool = False,
        layer_keep_ratios: tuple[float, float] = ANY_RATIO,
        multiples: Mapping[UnitKind, int] | None = None,
    ) -> None:
        """Check that the budgets can be met."""
        self._space = space
        self.fill = fill
        self.constraints: tuple[Constraint, ...] = build_constraints(
            space, keep_ratio, scope, protected_layers, lower, upper, layer_keep_ratios, multiples
        )
        self.costs_U = scope_costs(space, scope)
        self._constraints_on: dict[torch.device, tuple[Constraint, ...]] = {}

    def constraints_on(self, device: torch.device) -> tuple[Constraint, ...]:
        """The constraints with their tensors on a device, copied there once."""
        if device not in self._constraints_on:
            self._constraints_on[device] = tuple(
                replace(part, units=part.units.to(device), costs=part.costs.to(device))
                for part in self.constraints
            )
        return self._constraints_on[device]

    def project(self, z_U: Tensor) -> Tensor:
        """Find the nearest feasible probabilities.

        Args:
            z_U: Any finite point, (U,) float64.

        Returns:
            The probabilities, (U,) in the dtype of `z_U`; protected units have exactly 1.

        Raises:
            UserError: `z_U` is not finite.
        """
        assert z_U.shape == (self._space.num_units,), z_U.shape
        s_U = torch.ones_like(z_U)
        for part in self.constraints_on(z_U.device):
            s_U[part.units] = project_within_groups(
                z_U[part.units],
                part.limit,
                part.groups,
                costs_N=part.costs,
                lower=part.lower,
                upper=part.upper,
                fill=self.fill,
            )
        return s_U

    def deterministic_mask(self, s_U: Tensor) -> Tensor:
        """Keep the most probable units of each budget, as many as it allows.

        Equal probabilities rank by flat index. Where units differ in cost, a unit that does not fit
        is skipped in favour of later ones that do, so the unused budget is less than the cost of
        any dropped unit that may still be kept. With layer bounds the first units of each layer and
        kind, as many as its minimum, come before all others; those beyond its maximum never stay.
        With multiples, blocks of units take the place of units: the most probable units of a layer
        and kind form the first block, and blocks rank by their mean probability.

        Args:
            s_U: Probabilities, (U,); only their order within a constraint counts.

        Returns:
            The mask, (U,) bool, True keeps.
        """
        return self.deterministic_masks(s_U[None])[0]

    def deterministic_masks(self, s_SU: Tensor) -> Tensor:
        """The `deterministic_mask` of each row, (S, U)."""
        assert s_SU.shape == (len(s_SU), self._space.num_units), s_SU.shape
        masks_SU = torch.ones_like(s_SU, dtype=torch.bool)
        for part in self.constraints_on(s_SU.device):
            for s_U, mask_U in zip(s_SU, masks_SU, strict=True):
                mask_U[part.units] = kept_units(s_U[part.units], part)
        return masks_SU

    def expected_keep_ratio(self, s_U: Tensor) -> float:
        """Expected kept share of the cost, from 0 to 1, under probabilities (U,).

        Every unit counts, protected ones too: by its parameters if the scope is `parameters`,
        otherwise alike.
        """
        kept = self.costs_U @ s_U.detach().cpu().double()
        return float(kept / self.costs_U.sum())


def kept_units(s_N: Tensor, constraint: Constraint) -> Tensor:
    """The most probable units that a budget allows, (N,) bool."""
    if constraint.blocks:
        return kept_blocks(s_N, constraint.blocks, constraint.limit)
    ranked_N = s_N.argsort(descending=True, stable=True)
    kept_N = torch.zeros_like(s_N, dtype=torch.bool)
    kept_N[ranked_N] = greedy_knapsack(constraint.costs[ranked_N], constraint.limit)
    return kept_N


def kept_blocks(s_N: Tensor, groups: Sequence[GroupBlocks], limit: float) -> Tensor:
    """The most probable blocks that fit into a limit, as units, (N,) bool.

    Each group is split into blocks by falling probability. Where all blocks cost the same, no mask
    of whole blocks within the limit has a larger sum of probabilities.
    """
    on_host_N = s_N.detach().cpu()  # once, not for every group
    block_of_N = torch.full_like(on_host_N, -1, dtype=torch.int64)
    means, costs, forced, num_blocks = [], [], [], 0
    for group in groups:
        s_n = on_host_N[group.start : group.end]
        best_n = s_n.argsort(descending=True, stable=True)[: group.most * group.size]
        blocks_n = torch.arange(len(best_n)) // group.size
        block_of_N[group.start + best_n] = num_blocks + blocks_n
        means.append(s_n[best_n].double().reshape(group.most, group.size).mean(dim=1))
        costs.append(means[-1].new_full((group.most,), group.size * group.unit_cost))
        forced.append(torch.arange(group.most) < group.least)
        num_blocks += group.most
    means_B, costs_B, kept_B = torch.cat(means), torch.cat(costs), torch.cat(forced)
    ranked_B = means_B.argsort(descending=True, stable=True)
    rest_B = ranked_B[~kept_B[ranked_B]]
    kept_B[rest_B] = greedy_knapsack(costs_B[rest_B], limit - float(costs_B[kept_B].sum()))
    # Units of no block have the index -1, the last, which is dropped.
    return torch.cat([kept_B, torch.tensor([False])])[block_of_N].to(s_N.device)


def greedy_knapsack(costs_N: Tensor, limit: float) -> Tensor:
    """Go down a ranking and keep every unit that still fits.

    Each round keeps the longest run that fits; no later unit of the cost of the next one fits. So
    there are at most as many rounds as different costs.

    Args:
        costs_N: Costs of the units in the order of the ranking, (N,) float64.
        limit: Greatest cost of all kept units.

    Returns:
        Which of them are kept, (N,) bool.
    """
    kept_N = torch.zeros_like(costs_N, dtype=torch.bool)
    candidates = torch.arange(len(costs_N), device=costs_N.device)
    while len(candidates):
        spent = costs_N[candidates].cumsum(0)
        run = int((spent <= limit).sum())
        kept_N[candidates[:run]] = True
        limit -= float(spent[run - 1]) if run else 0.0
        candidates = candidates[run:]
        candidates = candidates[costs_N[candidates] <= limit]
    return kept_N
