"""Natural gradients against the Fisher matrix written out."""

import pytest
import torch

from pgprune_lightning.policy import FeasibleSet
from pgprune_lightning.policy.budgeted_logits import (
    derivatives,
    probabilities_on_budget,
    pull_back,
)
from pgprune_lightning.policy.fisher import natural_logit_gradient, natural_pooled_gradient

SCOPES = ["per_kind", "per_layer", "units", "parameters"]


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
