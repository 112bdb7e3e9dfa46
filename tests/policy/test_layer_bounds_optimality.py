"""Within layer bounds the projection is the nearest point, and the mask the best one."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgprune_lightning.policy import FeasibleSet, UnitLayout
from pgprune_lightning.policy.budget import GroupBounds
from pgprune_lightning.policy.projection import project_within_groups
from tests.policy_points import SCOPES, is_feasible, random_points

SMALL = UnitLayout.build(
    [
        (0, "kv_group", 2, 7, 0),
        (0, "mlp_channel", 4, 3, 0),
        (1, "kv_group", 2, 7, 0),
        (1, "mlp_channel", 4, 3, 0),
    ],
    total_parameters=100,
)


def holds(group, values_N) -> bool:
    return group.allows(float(values_N[group.start : group.end].sum()))


def equality_sets(groups, costs, limit, *, fill) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every choice of the sums that are at a bound: rows (K, N) and what they equal (K,)."""
    for sides in itertools.product((None, "least", "most"), repeat=len(groups)):
        for spends in (True,) if fill else (True, False):
            rows, totals = [costs * spends], [limit * spends]
            for group, side in zip(groups, sides, strict=True):
                row = torch.zeros_like(costs)
                if side is not None:
                    row[group.start : group.end] = 1.0
                rows.append(row)
                totals.append(0 if side is None else getattr(group, side))
            yield torch.stack(rows), torch.tensor(totals, dtype=torch.float64)


def by_active_sets(z, limit, groups, costs, *, fill):
    """Try every assignment of units to 0, 1 or inside with every choice of sums at a bound."""
    places = torch.tensor(list(itertools.product((0.0, 1.0, 0.5), repeat=len(z))))
    inside = (places == 0.5).double()
    fixed = places.double() * (1 - inside)
    candidates = []
    for rows, totals in equality_sets(groups, costs, limit, fill=fill):
        within = rows * inside[:, None, :]
        excess = fixed @ rows.T + (within @ z[:, None])[..., 0] - totals
        multipliers = torch.linalg.pinv(within @ within.mT) @ excess[..., None]
        candidates.append(fixed + inside * (z - (within.mT @ multipliers)[..., 0]))
    s = torch.cat(candidates)
    feasible = ((s >= -1e-9) & (s <= 1 + 1e-9)).all(1) & (s @ costs <= limit + 1e-9)
    if fill:
        feasible &= s @ costs >= limit - 1e-9
    for group in groups:
        sums = s[:, group.start : group.end].sum(1)
        feasible &= (sums >= group.least - 1e-9) & (sums <= group.most + 1e-9)
    s = s[feasible]
    return s[((s - z) ** 2).sum(1).argmin()]


def assert_optimal(z, s, feasible, *, fill):
    """Check the KKT conditions, which suffice: one multiplier a budget, one a bounded group.

    With u = v c + w a unit inside has z - s = u, one at its lower bound z - s <= u, one at its
    upper z - s >= u; w >= 0 only where the sum is at `most`, w <= 0 only where it is at `least`.
    """
    assert is_feasible(feasible, s)
    scale = 1e-9 * (float(z.abs().max()) + 1)
    for constraint in feasible.constraints:
        low, high = -float("inf") if fill else 0.0, float("inf")
        residual, values = (z - s)[constraint.units], s[constraint.units]
        for group in constraint.groups:
            units = slice(group.start, group.end)
            at_lower = values[units] <= constraint.lower
            at_upper = values[units] >= constraint.upper
            cost, total = float(constraint.costs[group.start]), float(values[units].sum())
            least_u = max([-float("inf"), *residual[units][~at_upper].tolist()])
            most_u = min([float("inf"), *residual[units][~at_lower].tolist()])
            assert least_u <= most_u + scale, "no one shift explains the group"
            slack = 1e-9 * group.count
            if total < group.most - slack:  # w <= 0, so that v c >= u
                low = max(low, least_u / cost)
            if total > group.least + slack:  # w >= 0, so that v c <= u
                high = min(high, most_u / cost)
        assert low <= high + scale, "no one multiplier explains all groups"
        spent = float(constraint.costs @ values)
        if not fill and spent < constraint.limit - 1e-9 * max(1.0, constraint.limit):
            assert low <= scale, "the budget is slack, yet its multiplier is positive"


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("costs", [(1.0, 1.0), (5.0, 1.0)])
def test_agrees_with_every_active_set(costs, fill):
    costs_N = torch.tensor([costs[0]] * 2 + [costs[1]] * 4, dtype=torch.float64)
    for index, z in enumerate(random_points(24, size=6)):
        heads = GroupBounds(0, 2, index % 2, 1 + index // 12)
        channels = GroupBounds(2, 6, 1 + index % 3 // 2, 3)
        low = heads.least * costs[0] + channels.least * costs[1]
        high = heads.most * costs[0] + channels.most * costs[1]
        limit = low + (index % 5) / 4 * (high - low)
        groups = (heads, channels)
        options = {"costs_N": costs_N, "lower": 0.0, "upper": 1.0, "fill": fill}
        s = project_within_groups(z, limit, groups, **options)
        expected = by_active_sets(z, limit, groups, costs_N, fill=fill)
        torch.testing.assert_close(s, expected, atol=1e-8, rtol=0)


@st.composite
def sets_and_points(draw):
    sizes = [
        (layer, kind, draw(st.integers(2, 6)), {"kv_group": 70, "mlp_channel": 9}[kind], 0)
        for layer in range(draw(st.integers(1, 4)))
        for kind in ("kv_group", "mlp_channel")
    ]
    space = UnitLayout.build(sizes, total_parameters=10_000)
    keep_ratio = draw(st.one_of(st.sampled_from([0.5, 0.6, 0.7, 0.75, 1.0]), st.floats(0.5, 1)))
    # Often the budget itself, where only one point or one sum is left.
    minimum = draw(st.one_of(st.just(keep_ratio), st.just(0.0), st.floats(0, keep_ratio)))
    maximum = draw(st.one_of(st.just(keep_ratio), st.just(1.0), st.floats(keep_ratio, 1)))
    fill = draw(st.booleans())
    feasible = FeasibleSet(
        space,
        keep_ratio,
        scope=draw(st.sampled_from(SCOPES)),
        lower=draw(st.sampled_from([0.0, 0.0, 0.01])),
        upper=draw(st.sampled_from([1.0, 0.99, 0.8])),
        fill=fill,
        layer_keep_ratios=(minimum, maximum),
    )
    # Few different numbers, so that ties are common.
    values = st.one_of(st.integers(-3, 3), st.floats(-2, 2))
    z = draw(st.lists(values, min_size=space.num_units, max_size=space.num_units))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e4]))
    return feasible, torch.tensor(z, dtype=torch.float64) * scale, fill


@settings(deadline=None, max_examples=300)
@given(sets_and_points())
def test_kkt_idempotence_and_a_mask_of_the_whole_budget(problem):
    feasible, z, fill = problem
    s = feasible.project(z)
    assert_optimal(z, s, feasible, fill=fill)
    torch.testing.assert_close(feasible.project(s), s, atol=1e-9, rtol=0)
    mask = feasible.deterministic_mask(z)
    for constraint in feasible.constraints:
        kept = mask[constraint.units]
        assert all(holds(group, kept) for group in constraint.groups)
        left = constraint.limit - float(constraint.costs @ kept.double())
        assert left >= 0
        if set(constraint.costs.tolist()) == {1.0}:
            assert left == 0


@pytest.mark.parametrize("scope", ["per_kind", "units"])
@pytest.mark.parametrize("ratios", [(0.25, 0.75), (0.5, 1.0), (0.0, 0.75), (0.6, 0.6)])
def test_the_mask_is_the_most_probable_of_all_that_are_allowed(scope, ratios):
    feasible = FeasibleSet(SMALL, 0.6, scope=scope, layer_keep_ratios=ratios)
    masks = torch.tensor(list(itertools.product([False, True], repeat=12)))
    allowed = [
        mask
        for mask in masks
        if all(
            mask[c.units].sum() == c.limit and all(holds(g, mask[c.units]) for g in c.groups)
            for c in feasible.constraints
        )
    ]
    differs = 0
    for s in random_points(20, size=12).sigmoid():
        best = max(allowed, key=lambda mask, s=s: float(s[mask].sum()))
        mask = feasible.deterministic_mask(s)
        assert mask.equal(best)
        differs += not mask.equal(FeasibleSet(SMALL, 0.6, scope=scope).deterministic_mask(s))
    assert differs > 3, "the bounds should matter"


@pytest.mark.parametrize(("keep_ratio", "protected"), [(0.65, ()), (0.75, (0,))])
@pytest.mark.parametrize("ratios", [(0.4, 1.0), (0.0, 0.8), (0.5, 0.7)])
def test_a_parameter_mask_equals_a_greedy_loop(space, ratios, keep_ratio, protected):
    feasible = FeasibleSet(
        space, keep_ratio, scope="parameters", protected_layers=protected, layer_keep_ratios=ratios
    )
    (constraint,) = feasible.constraints
    costs = constraint.costs.tolist()
    for z in random_points(20):
        s = z.sigmoid().mul(5).round() / 5  # some are equal
        ranked = sorted(range(len(costs)), key=lambda unit: -s[constraint.units][unit])
        group_of = [g for g in constraint.groups for _ in range(g.count)]
        kept: set[int] = set()
        left = constraint.limit

        def kept_in(group, kept=kept):
            return sum(unit in kept for unit in range(group.start, group.end))

        for unit in ranked:
            if kept_in(group_of[unit]) < group_of[unit].least:
                kept.add(unit)
                left -= costs[unit]
        for unit in ranked:
            is_free = unit not in kept and kept_in(group_of[unit]) < group_of[unit].most
            if is_free and costs[unit] <= left:
                kept.add(unit)
                left -= costs[unit]
        mask = feasible.deterministic_mask(s)
        assert set(mask[constraint.units].nonzero().flatten().tolist()) == kept
        for layer in protected:
            assert space.view(mask, layer, "mlp_channel").all()
