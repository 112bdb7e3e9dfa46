"""The projection is the nearest point of the budget's polytope: KKT conditions and brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import project_onto_budget


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def assert_kkt(z, budget, s, *, costs=None, lower=0.0, upper=1.0, fill=False):
    """Check feasibility, stationarity and complementary slackness, which suffice: it is convex."""
    costs = torch.ones_like(z) if costs is None else costs
    spent = float(costs @ s)
    scale = float(z.abs().max()) + 1
    tolerance = 1e-9 * max(1.0, abs(budget))
    assert ((s >= lower) & (s <= upper)).all()
    assert spent <= budget + tolerance
    if fill:
        assert spent >= budget - tolerance
    # z - s = v c + (multipliers of the bounds): inside v is (z - s) / c, at a bound v has a side.
    v = (z - s) / costs
    at_lower, at_upper = s <= lower, s >= upper
    least = float(v[~at_upper].max()) if (~at_upper).any() else -float("inf")
    most = float(v[~at_lower].min()) if (~at_lower).any() else float("inf")
    slack = 1e-9 * scale * float((1 / costs).max())
    assert least <= most + slack, "no one multiplier explains all units"
    if not fill:
        assert most >= -slack, "the multiplier is negative"
        if spent < budget - tolerance:
            assert least <= slack, "the budget is slack, yet its multiplier is positive"


def by_active_sets(z, budget, costs, *, fill):
    """Try every assignment of the units to lower, upper or inside, with the budget on or off."""
    points = [z.clamp(0, 1)]
    for places in itertools.product((0.0, 1.0, None), repeat=len(z)):
        inside = torch.tensor([place is None for place in places])
        s = f64([0.0 if place is None else place for place in places])
        if inside.any():
            left = budget - costs @ s
            v = (costs[inside] @ z[inside] - left) / (costs[inside] @ costs[inside])
            s[inside] = z[inside] - v * costs[inside]
        points.append(s)
    feasible = [
        s
        for s in points
        if ((s >= -1e-12) & (s <= 1 + 1e-12)).all()
        and costs @ s <= budget + 1e-10
        and (not fill or costs @ s >= budget - 1e-10)
    ]
    return min(feasible, key=lambda s: float(((s - z) ** 2).sum()))


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_every_active_set(weighted, fill):
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        z = torch.randn(5, generator=generator, dtype=torch.float64)
        costs = torch.rand(5, generator=generator).double() * 3 + 0.1
        costs = costs if weighted else torch.ones(5).double()
        budget = float(torch.rand((), generator=generator)) * float(costs.sum())
        s = project_onto_budget(z, budget, costs_N=costs, fill=fill)
        torch.testing.assert_close(
            s, by_active_sets(z, budget, costs, fill=fill), atol=1e-9, rtol=0
        )


def test_agrees_with_bisection():
    z = torch.randn(1000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    low, high = z.min() - 2, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        above = (z - middle).clamp(0, 1).sum() > 300
        low, high = (middle, high) if above else (low, middle)
    torch.testing.assert_close(
        project_onto_budget(z, 300), (z - low).clamp(0, 1), atol=1e-12, rtol=0
    )


@st.composite
def problems(draw):
    size = draw(st.integers(1, 30))
    scale = draw(st.sampled_from([1e-3, 1.0, 10.0, 1e4]))
    # Few different numbers, so that ties are common.
    values = st.one_of(st.integers(-3, 3), st.floats(-2, 2))
    z = torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).double() * scale
    costs = torch.tensor(
        draw(st.lists(st.sampled_from([1.0, 2.0, 0.3, 50.0]), min_size=size, max_size=size))
    ).double()
    lower = draw(st.sampled_from([0.0, 0.01, 0.3]))
    upper = draw(st.sampled_from([0.31, 0.99, 1.0]))
    share = draw(st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)))
    budget = float(costs.sum()) * (lower + share * (upper - lower))
    return z, budget, {"costs": costs, "lower": lower, "upper": upper, "fill": draw(st.booleans())}


@settings(deadline=None, max_examples=300)
@given(problems())
def test_kkt_and_idempotence(problem):
    z, budget, options = problem
    arguments = {"costs_N" if key == "costs" else key: v for key, v in options.items()}
    s = project_onto_budget(z, budget, **arguments)
    assert_kkt(z, budget, s, **options)
    torch.testing.assert_close(project_onto_budget(s, budget, **arguments), s, atol=1e-10, rtol=0)


def test_bounds_may_differ_between_units():
    z = f64([0.9, 0.9, 0.9, -1.0])
    lower = f64([0.0, 0.8, 0.0, 0.2])
    upper = f64([1.0, 1.0, 0.1, 0.2])
    s = project_onto_budget(z, 1.5, lower=lower, upper=upper)
    torch.testing.assert_close(s, f64([0.4, 0.8, 0.1, 0.2]))


def test_ties_stay_ties():
    for value in (0.5, -3.0, 7.0, 1e12):
        s = project_onto_budget(torch.full((7,), value, dtype=torch.float64), 3.0, fill=True)
        torch.testing.assert_close(
            s, torch.full((7,), 3 / 7, dtype=torch.float64), atol=1e-15, rtol=0
        )


def test_zero_budget_keeps_exactly_nothing():
    z = f64([3.0, 0.1, -1.0, 1e12])
    costs = f64([1.0, 2.5, 0.3, 7.0])
    assert project_onto_budget(z, 0.0).tolist() == [0.0] * 4
    assert project_onto_budget(z, 0.0, costs_N=costs).tolist() == [0.0] * 4


def test_full_budget_only_clips_unless_it_must_be_filled():
    z = f64([3.0, 0.25, -1.0])
    assert project_onto_budget(z, 3.0).tolist() == [1.0, 0.25, 0.0]
    assert project_onto_budget(z, 99.0).tolist() == [1.0, 0.25, 0.0]
    assert project_onto_budget(z, 3.0, fill=True).tolist() == [1.0, 1.0, 1.0]


def test_a_feasible_point_is_only_clipped():
    z = f64([0.2, -0.5, 1.5, 0.125])
    assert project_onto_budget(z, 2.0).tolist() == [0.2, 0.0, 1.0, 0.125]


def test_fill_raises_a_point_below_the_budget():
    s = project_onto_budget(f64([0.1, 0.2, 0.95]), 2.0, fill=True)
    torch.testing.assert_close(s, f64([0.45, 0.55, 1.0]))


def test_a_budget_on_the_bounds_is_met_whichever_way_it_was_summed():
    generator = torch.Generator().manual_seed(5)
    for size in range(2, 200):
        only = torch.rand(size, generator=generator, dtype=torch.float64)
        for budget in (float(only @ torch.ones_like(only)), sum(only.tolist())):
            s = project_onto_budget(-only, budget, lower=only, upper=only, fill=True)
            assert s.equal(only)


def test_one_unit():
    assert project_onto_budget(f64([5.0]), 0.25).tolist() == [0.25]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("huge", [1e6, 1e12])
def test_huge_values(weighted, huge):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(200, generator=generator, dtype=torch.float64)
    z[::3] *= huge
    costs = torch.rand(200, generator=generator).double() * 5000 + 1 if weighted else None
    total = 200.0 if costs is None else float(costs.sum())
    for share in (0.02, 0.3, 0.5, 0.9):
        s = project_onto_budget(z, share * total, costs_N=costs, fill=True)
        assert_kkt(z, share * total, s, costs=costs, fill=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_million_units_meet_the_budget(weighted):
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    costs = torch.randint(1, 2_000_000, z.shape, generator=generator).double() if weighted else None
    budget = 0.3 * (1e6 if costs is None else float(costs.sum()))
    s = project_onto_budget(z, budget, costs_N=costs)
    spent = float(s.sum() if costs is None else costs @ s)
    assert abs(spent - budget) <= 1e-12 * budget
    assert_kkt(z, budget, s, costs=costs)


def test_the_dtype_is_kept_and_the_argument_untouched():
    z = torch.tensor([0.9, 0.8], dtype=torch.float32)
    s = project_onto_budget(z, 1.0)
    assert s.dtype == torch.float32
    assert z.tolist() == torch.tensor([0.9, 0.8]).tolist()
    torch.testing.assert_close(s, torch.tensor([0.55, 0.45]))


@pytest.mark.parametrize(
    ("z", "budget", "options", "message"),
    [
        ([0.5, float("nan")], 1.0, {}, "1 of 2 values .* not finite"),
        ([0.5, float("inf")], 1.0, {}, "not finite"),
        ([0.5, 0.5], 1.0, {"costs_N": torch.tensor([1.0, 0.0])}, "positive"),
        ([0.5, 0.5], 1.0, {"costs_N": torch.tensor([1.0, -2.0])}, "positive"),
        ([0.5, 0.5], 1.0, {"lower": 0.6, "upper": 0.5}, "above its upper"),
        ([0.5, 0.5], -0.1, {}, "cannot be met"),
        ([0.5, 0.5], float("nan"), {}, "cannot be met"),
        ([0.5, 0.5], 0.5, {"lower": 0.3}, r"from 0\.6 to 2"),
        ([0.5, 0.5], 2.1, {"fill": True}, "cannot be met"),
    ],
)
def test_what_cannot_be_projected_is_refused(z, budget, options, message):
    with pytest.raises(UserError, match=message):
        project_onto_budget(f64(z), budget, **options)
