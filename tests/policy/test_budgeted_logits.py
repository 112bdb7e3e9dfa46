"""Shifted logits meet the budget; gradients and natural gradients go back through the shift."""

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet, budgeted_logits
from pgprune_lightning.policy.budgeted_logits import (
    check_no_layer_bounds,
    derivatives,
    logits_of,
    natural_logit_gradient,
    natural_pooled_gradient,
    probabilities_on_budget,
    pull_back,
    shift_logits,
)
from tests.policy_points import is_feasible

SCOPES = ["per_kind", "per_layer", "units", "parameters"]
BOUNDS = [(0.0, 1.0), (0.02, 0.95)]


def feasible(space, scope, bounds=(0.0, 1.0), keep_ratio=0.6):
    protected = () if scope == "per_layer" else (0,)
    return FeasibleSet(
        space,
        keep_ratio,
        scope=scope,
        protected_layers=protected,
        lower=bounds[0],
        upper=bounds[1],
        fill=True,
    )


def draw(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(22, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 300.0])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_budget_is_met_exactly(space, scope, bounds, scale):
    budget = feasible(space, scope, bounds)
    for seed in range(5):
        s_U = probabilities_on_budget(draw(seed, scale), budget)
        assert is_feasible(budget, s_U, tolerance=1e-11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("keep_ratio", [0.6, 1.0])
def test_logits_that_are_not_finite_are_refused(space, bad, keep_ratio):
    x_U = draw(0, 1.0)
    x_U[5] = bad
    with pytest.raises(UserError, match="1 of 22 logits are not finite"):
        probabilities_on_budget(x_U, FeasibleSet(space, keep_ratio))


@pytest.mark.parametrize("power", [1, 5, 15])
@pytest.mark.parametrize("mean", [0.05, 0.5, 0.7])
def test_logits_of_very_different_magnitude_meet_their_budget(power, mean):
    """Newton's method goes astray there; halving the bracket does not."""
    generator = torch.Generator().manual_seed(0)
    x_N = 5 * torch.randn(1000, generator=generator, dtype=torch.float64) ** power
    weights_N = torch.full_like(x_N, 1e-3)
    s_N = (x_N + budgeted_logits._shift(x_N, weights_N, mean)).sigmoid()
    assert float(weights_N @ s_N) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("keep_ratio", [0.5, 0.9, 1.0])
def test_shifted_logits_meet_the_limits_by_one_constant_each(space, scope, keep_ratio):
    feasible = FeasibleSet(space, keep_ratio, scope=scope, protected_layers=[0])
    x = draw(7, 20.0)
    shifted = shift_logits(x, feasible)
    for constraint in feasible.constraints:
        kept = float(constraint.costs @ shifted[constraint.units].sigmoid())
        assert abs(kept - constraint.limit) <= 1e-12 * float(constraint.costs.sum())
        shifts = (shifted - x)[constraint.units]
        torch.testing.assert_close(shifts, shifts[0].expand_as(shifts), atol=1e-11, rtol=0)
    assert space.view(shifted, 0, "kv_group").equal(space.view(x, 0, "kv_group"))


def test_logits_of_a_spent_budget_go_to_zero(space):
    feasible = FeasibleSet(space, 6 / 22, scope="units", protected_layers=[1])
    (constraint,) = feasible.constraints
    assert constraint.limit == 0
    shifted = shift_logits(draw(7, 20.0), feasible)
    assert shifted[constraint.units].sigmoid().sum() == 0
    assert shifted.isfinite().all()


def test_logits_must_be_finite(space):
    x = draw(0, 1.0)
    x[3] = float("nan")
    with pytest.raises(UserError, match="1 of 22 logits are not finite"):
        shift_logits(x, FeasibleSet(space, 0.7))


def test_a_budget_at_the_upper_bound_puts_every_unit_there(space):
    s_U = probabilities_on_budget(draw(0, 2.0), FeasibleSet(space, 1.0))
    assert s_U.tolist() == [1.0] * 22
    v_U = derivatives(s_U, FeasibleSet(space, 1.0))
    assert not pull_back(draw(1, 1.0), v_U, FeasibleSet(space, 1.0)).any()


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_gradient_is_that_of_finite_differences(space, scope, bounds):
    budget, x_U, g_U = feasible(space, scope, bounds), draw(0, 1.5), draw(1, 1.0)
    s_U = probabilities_on_budget(x_U, budget)
    pulled_U = pull_back(g_U, derivatives(s_U, budget), budget)
    step = 1e-5
    expected = []
    for unit in range(22):
        ahead, behind = x_U.clone(), x_U.clone()
        ahead[unit] += step
        behind[unit] -= step
        moved = probabilities_on_budget(ahead, budget) - probabilities_on_budget(behind, budget)
        expected.append(float(g_U @ moved) / (2 * step))
    torch.testing.assert_close(pulled_U, torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)


def test_no_unit_is_lost_at_a_bound(space):
    """A clamp would have derivative zero there, and the unit never a gradient again."""
    budget = feasible(space, "units", (0.02, 0.95))
    x_U = torch.zeros(22, dtype=torch.float64)
    x_U[-1], x_U[-2] = 12.0, -12.0
    s_U = probabilities_on_budget(x_U, budget)
    assert 0.02 < s_U[-2] < 0.0201
    assert 0.9499 < s_U[-1] < 0.95
    free_U = budget.constraints[0].units
    assert (derivatives(s_U, budget)[free_U] > 0).all()


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_logits_of_probabilities_give_them_back(space, scope, bounds):
    budget = feasible(space, scope, bounds)
    s_U = probabilities_on_budget(draw(3, 2.0), budget)
    again_U = probabilities_on_budget(logits_of(s_U, budget), budget)
    torch.testing.assert_close(again_U, s_U, rtol=0, atol=1e-11)


def test_logits_of_bounds_are_finite_and_outermost(space):
    budget = FeasibleSet(space, 0.5, scope="units")
    s_U = torch.full((22,), 0.5).double()
    s_U[:4] = torch.tensor([0.0, 1.0, 1e-9, 0.9999])
    x_U = logits_of(s_U, budget)
    assert x_U.isfinite().all()
    assert x_U[0] == x_U[2] < x_U[4] < x_U[3] == x_U[1]


def test_layer_bounds_are_refused(space):
    check_no_layer_bounds(FeasibleSet(space, 0.5))
    with pytest.raises(UserError, match="cannot hold layer_keep_ratios"):
        check_no_layer_bounds(FeasibleSet(space, 0.5, layer_keep_ratios=(0.2, 0.9)))


def state(space, scope, bounds):
    generator = torch.Generator().manual_seed(0)
    x_U, g_U = torch.randn(2, 22, generator=generator, dtype=torch.float64)
    budget = FeasibleSet(space, 0.6, scope=scope, lower=bounds[0], upper=bounds[1], fill=True)
    s_U = probabilities_on_budget(2 * x_U, budget)
    v_U = derivatives(s_U, budget)
    return budget, s_U, v_U, pull_back(g_U, v_U, budget), g_U


def fisher_matrix(budget, s_U, v_U):
    """J^T diag(1 / (s (1 - s))) J, with each column of J the derivative by one logit."""
    columns = [pull_back(row, v_U, budget) for row in torch.eye(22, dtype=torch.float64)]
    jacobian_UU = torch.stack(columns)  # of s_i by x_j: the pull-back of e_i is row i
    return jacobian_UU.T @ torch.diag(1 / (s_U * (1 - s_U))) @ jacobian_UU


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.02, 0.95)])
@pytest.mark.parametrize("scope", SCOPES)
def test_free_logits_solve_with_the_whole_matrix(space, scope, bounds):
    budget, s_U, v_U, gradient_U, _ = state(space, scope, bounds)
    damped_UU = fisher_matrix(budget, s_U, v_U) + 0.01 * torch.eye(22, dtype=torch.float64)
    expected_U = torch.linalg.solve(damped_UU, gradient_U)
    natural_U = natural_logit_gradient(gradient_U, s_U, v_U, budget, damping=0.01)
    torch.testing.assert_close(natural_U, expected_U, rtol=1e-8, atol=1e-10)


def test_it_is_the_gradient_over_s_times_one_minus_s(space):
    """Up to one constant a budget, which the shift takes back, and damping."""
    budget, s_U, v_U, gradient_U, g_U = state(space, "units", (0.0, 1.0))
    natural_U = natural_logit_gradient(gradient_U, s_U, v_U, budget, damping=1e-9)
    for other_U in (gradient_U / (s_U * (1 - s_U)), g_U):
        difference_U = natural_U - other_U
        assert (difference_U - difference_U.mean()).abs().max() < 1e-5


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.02, 0.95)])
@pytest.mark.parametrize("scope", SCOPES)
def test_pooled_numbers_solve_with_the_pooled_matrix(space, scope, bounds):
    budget, s_U, v_U, gradient_U, _ = state(space, scope, bounds)
    generator = torch.Generator().manual_seed(1)
    features_UK = torch.randn(22, 2, generator=generator, dtype=torch.float64)
    features_UK[:, 0] = 1
    counts = [group.count for group in space.groups]
    group_of_U = torch.repeat_interleave(torch.arange(6), torch.tensor(counts))
    design_UP = torch.zeros(22, 12, dtype=torch.float64)
    for unit, group in enumerate(group_of_U.tolist()):
        design_UP[unit, 2 * group : 2 * group + 2] = features_UK[unit]
    damped_UU = fisher_matrix(budget, s_U, v_U) + 0.01 * torch.eye(22, dtype=torch.float64)
    gradient_P = design_UP.T @ gradient_U
    expected_P = torch.linalg.solve(design_UP.T @ damped_UU @ design_UP, gradient_P)
    natural_GK = natural_pooled_gradient(
        gradient_P.reshape(6, 2), features_UK, group_of_U, s_U, v_U, budget, damping=0.01
    )
    torch.testing.assert_close(natural_GK.reshape(-1), expected_P, rtol=1e-5, atol=1e-7)
