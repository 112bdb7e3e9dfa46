"""Deterministic masks: the top units against a greedy loop, whole blocks against every mask.

Shapes: U units.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    BudgetScope,
    Constraint,
    FeasibleSet,
    UnitKind,
    UnitLayout,
    unit_multiples,
)
from pgprune_lightning.policy.budget import GroupBlocks
from pgprune_lightning.policy.feasible_set import greedy_knapsack, kept_blocks, kept_units
from tests.policy.greedy_fit import greedy

VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e-300]),
    st.floats(allow_nan=False, allow_infinity=True),
    st.floats(0, 1),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(0, 150))
def test_down_a_ranking_it_equals_a_greedy_loop(costs: list[int], limit: int) -> None:
    kept = greedy_knapsack(torch.tensor(costs, dtype=torch.float64), limit)
    assert kept.tolist() == greedy([0.0] * len(costs), costs, limit)


@settings(deadline=None, max_examples=500)
@given(
    st.lists(st.tuples(VALUES, st.sampled_from([1, 3, 171])), min_size=1, max_size=60),
    st.floats(0, 1.2),
)
def test_of_any_probabilities_it_keeps_what_a_greedy_loop_does(
    units: list[tuple[float, int]], share: float
) -> None:
    values, costs = [value for value, _ in units], [cost for _, cost in units]
    costs_N, limit = torch.tensor(costs, dtype=torch.float64), math.floor(share * sum(costs))
    budget = Constraint("any", torch.arange(len(units)), costs_N, limit, lower=0.0, upper=1.0)
    kept_N = kept_units(torch.tensor(values, dtype=torch.float64), budget)
    assert kept_N.tolist() == greedy(values, costs, limit)


SPACE = UnitLayout.build(
    [
        (layer, kind, count, cost, 7)
        for layer in range(2)
        for kind, count, cost in (("kv_group", 3, 10), ("mlp_channel", 5, 4))
    ],
    total_parameters=1000,
)
BLOCKS: dict[UnitKind, int] = {"kv_group": 1, "mlp_channel": 2}
SCOPES: tuple[BudgetScope, ...] = ("per_kind", "per_layer", "units", "parameters")


def probabilities(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(SPACE.num_units, generator=generator, dtype=torch.float64)


def counts(mask_U: Tensor) -> dict[tuple[int, UnitKind], int]:
    return {(g.layer, g.kind): int(mask_U[g.start : g.end].sum()) for g in SPACE.groups}


def is_whole(mask_U: Tensor, multiples: dict[UnitKind, int] = BLOCKS) -> bool:
    return all(count % multiples[kind] == 0 for (_, kind), count in counts(mask_U).items())


def best_sum(constrained_U: Tensor, s_U: Tensor, limit: float) -> float:
    """The largest sum of probabilities of any mask of whole blocks within a limit of units."""
    groups = [g for g in SPACE.groups if bool(constrained_U[g.start])]
    choices = []
    for group in groups:
        best = s_U[group.start : group.end].sort(descending=True).values.cumsum(0).tolist()
        sums = [0.0, *best]
        choices.append([(k, sums[k]) for k in range(0, group.count + 1, BLOCKS[group.kind])])
    feasible = (
        sum(total for _, total in choice)
        for choice in itertools.product(*choices)
        if sum(count for count, _ in choice) <= limit
    )
    return max(feasible)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep_ratio", [0.5, 0.7, 0.9])
def test_equal_blocks_are_kept_as_no_mask_keeps_them_better(seed: int, keep_ratio: float) -> None:
    s_U = probabilities(seed)
    feasible = FeasibleSet(SPACE, keep_ratio, multiples=BLOCKS)
    mask_U = feasible.deterministic_mask(s_U)
    assert is_whole(mask_U)
    for constraint in feasible.constraints:
        constrained_U = torch.zeros(SPACE.num_units, dtype=torch.bool)
        constrained_U[constraint.units] = True
        kept = mask_U & constrained_U
        assert int(kept.sum()) <= constraint.limit
        best = best_sum(constrained_U, s_U, constraint.limit)
        assert float(s_U[kept].sum()) == pytest.approx(best)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("keep_ratio", [0.55, 0.8])
def test_budgets_hold_and_nothing_that_fits_is_left_out(
    scope: BudgetScope, keep_ratio: float
) -> None:
    feasible = FeasibleSet(SPACE, keep_ratio, scope=scope, multiples=BLOCKS)
    mask_U = feasible.deterministic_mask(probabilities(7))
    assert is_whole(mask_U)
    for constraint in feasible.constraints:
        left = constraint.limit - float(constraint.costs[mask_U[constraint.units]].sum())
        assert left >= 0
        for group in SPACE.groups:
            if group.start not in constraint.units:
                continue
            place = int((constraint.units == group.start).nonzero())
            block_cost = BLOCKS[group.kind] * float(constraint.costs[place])
            dropped = group.count - counts(mask_U)[group.layer, group.kind]
            assert dropped < BLOCKS[group.kind] or block_cost > left


@pytest.mark.parametrize("scope", SCOPES)
def test_blocks_of_one_unit_are_the_usual_mask(scope: BudgetScope) -> None:
    s_U = (probabilities(3) * 5).round() / 5  # many are equal
    usual = FeasibleSet(SPACE, 0.6, scope=scope)
    mask_U = usual.deterministic_mask(s_U)
    for part in usual.constraints:
        groups, start = [], 0
        for group in SPACE.groups:
            if group.start in part.units:
                end, cost = start + group.count, float(part.costs[start])
                groups.append(GroupBlocks(start, end, 1, cost, least=0, most=group.count))
                start = end
        kept_N = kept_blocks(s_U[part.units], groups, part.limit)
        assert torch.equal(kept_N, mask_U[part.units])


@pytest.mark.parametrize(("least", "expected"), [(0.0, (0, 4)), (0.2, (2, 2)), (0.4, (2, 2))])
def test_the_minimum_of_a_layer_is_rounded_up_to_blocks(
    least: float, expected: tuple[int, int]
) -> None:
    s_U = probabilities(0)
    s_U[SPACE.group(0, "mlp_channel").start : SPACE.group(0, "mlp_channel").end] = 0.001
    feasible = FeasibleSet(SPACE, 0.4, layer_keep_ratios=(least, 1.0), multiples=BLOCKS)
    kept = counts(feasible.deterministic_mask(s_U))
    assert (kept[0, "mlp_channel"], kept[1, "mlp_channel"]) == expected


def test_protected_layers_stay_whole() -> None:
    feasible = FeasibleSet(SPACE, 0.8, protected_layers=[0], multiples=BLOCKS)
    mask_U = feasible.deterministic_mask(probabilities(1))
    assert [counts(mask_U)[0, kind] for kind in SPACE.kinds] == [3, 5]
    assert counts(mask_U)[1, "mlp_channel"] == 2


def test_a_block_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(UserError, match="costs 5, and the budget allows 4"):
        FeasibleSet(SPACE, 0.4, multiples={"mlp_channel": 5})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, 1, 1), {}),
        ((64, 1, 1), {"mlp_channel": 64}),
        ((64, 1, 16), {"mlp_channel": 4}),
        ((6, 4, 1), {"kv_group": 4, "mlp_channel": 12}),
        ((6, 4, 8), {"kv_group": 4, "mlp_channel": 3}),
    ],
)
def test_multiples_of_units(given: tuple[int, int, int], expected: dict[UnitKind, int]) -> None:
    assert unit_multiples(*given) == expected


def test_a_multiple_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="tensor_parallel: must be at least 1"):
        unit_multiples(64, 0)
