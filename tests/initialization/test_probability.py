"""From a metric to probabilities: normalised, ranked as the metric ranks, feasible.

Shapes: U units.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pgprune_lightning.initialization import normalize_metric, score_const, sigmoid_norm
from pgprune_lightning.policy import BudgetScope, FeasibleSet, UnitLayout
from tests.policy_points import is_feasible

SCOPES: tuple[BudgetScope, ...] = ("per_kind", "per_layer", "units", "parameters")


@pytest.fixture
def metric_U(space: UnitLayout) -> Tensor:  # noqa: N802 - the suffix is the shape
    """Positive, and 1,000 times larger in the second layer."""
    generator = torch.Generator().manual_seed(0)
    metric_U = torch.rand(space.num_units, generator=generator, dtype=torch.float64) + 0.1
    for kind in space.kinds:
        space.view(metric_U, 1, kind).mul_(1000)
    return metric_U


def assert_standardized(values: Tensor) -> None:
    assert float(values.mean()) == pytest.approx(0, abs=1e-12)
    assert float(values.square().mean()) == pytest.approx(1, abs=1e-12)


def test_normalized_in_each_layer(space: UnitLayout, metric_U: Tensor) -> None:
    normalized_U = normalize_metric(metric_U, space, "layer")
    for group in space.groups:
        part = space.view(normalized_U, group.layer, group.kind)
        assert_standardized(part)
        assert torch.equal(part.argsort(), space.view(metric_U, group.layer, group.kind).argsort())


def test_normalized_over_a_kind(space: UnitLayout, metric_U: Tensor) -> None:
    normalized_U = normalize_metric(metric_U, space, "global")
    for kind in space.kinds:
        parts = [space.view(normalized_U, layer, kind) for layer in (0, 1)]
        assert_standardized(torch.cat(parts))
        assert parts[0].max() < parts[1].min()


def test_normalized_per_parameter(space: UnitLayout, metric_U: Tensor) -> None:
    normalized_U = normalize_metric(metric_U, space, "per_parameter")
    assert_standardized(normalized_U)
    per_parameter_U = metric_U / space.unit_costs_U
    assert torch.equal(normalized_U.argsort(), per_parameter_U.argsort())
    # Equal ratios are equal distances, whatever the kinds.
    slopes = normalized_U.diff() / per_parameter_U.log().diff()
    torch.testing.assert_close(slopes, slopes[:1].expand_as(slopes))


def test_nothing_is_worth_less_than_the_least_above_zero(space: UnitLayout) -> None:
    metric_U = torch.zeros(space.num_units, dtype=torch.float64)
    assert not normalize_metric(metric_U, space, "per_parameter").any()
    metric_U[:2] = torch.tensor([1.0, 100.0])
    normalized_U = normalize_metric(metric_U, space, "per_parameter")
    assert bool(normalized_U.isfinite().all())
    assert normalized_U.argmax() == 1
    assert len(normalized_U[2:].unique()) == 1


def test_equal_values_become_zeros(space: UnitLayout, metric_U: Tensor) -> None:
    # 0.1 summed in another order each time: equal but for rounding, which is no ranking.
    space.view(metric_U, 0, "mlp_channel").fill_(0.3)[::2] = 0.1 + 0.2
    normalized_U = normalize_metric(metric_U, space, "layer")
    assert not space.view(normalized_U, 0, "mlp_channel").any()
    assert_standardized(space.view(normalized_U, 1, "mlp_channel"))


def test_units_alone_in_their_layer_keep_their_ranking() -> None:
    space = UnitLayout.build([(layer, "layer", 1, 10, 0) for layer in range(4)], 40)
    metric_U = torch.tensor([3.0, 1.0, 4.0, 2.0], dtype=torch.float64)
    normalized_U = normalize_metric(metric_U, space, "layer")
    assert_standardized(normalized_U)
    assert normalized_U.argsort().tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("slope", [1.0, 8.0])
def test_sigmoid_norm_meets_the_budget_in_the_metrics_order(
    space: UnitLayout, metric_U: Tensor, scope: BudgetScope, slope: float
) -> None:
    feasible_set = FeasibleSet(space, 0.6, scope=scope)
    normalized_U = normalize_metric(metric_U, space, "layer")
    s_U = sigmoid_norm(normalized_U, feasible_set, slope=slope, shift_to_budget=True)
    assert s_U.dtype == torch.float64
    assert is_feasible(feasible_set, s_U)
    for constraint in feasible_set.constraints:
        s_N, x_N = s_U[constraint.units], normalized_U[constraint.units]
        assert float(constraint.costs @ s_N) == pytest.approx(constraint.limit, rel=1e-9)
        assert (s_N[x_N.argsort()].diff() >= 0).all()
        odds_N = (s_N / (1 - s_N)).log()
        torch.testing.assert_close(odds_N - slope * x_N, (odds_N - slope * x_N)[:1].expand_as(x_N))


def test_sigmoid_norm_keeps_protected_layers(space: UnitLayout, metric_U: Tensor) -> None:
    feasible_set = FeasibleSet(space, 0.8, protected_layers=[0])
    s_U = sigmoid_norm(
        normalize_metric(metric_U, space, "layer"), feasible_set, slope=1.0, shift_to_budget=True
    )
    assert (space.view(s_U, 0, "mlp_channel") == 1).all()
    assert feasible_set.expected_keep_ratio(s_U) <= 0.8
    assert is_feasible(feasible_set, s_U)


@pytest.mark.parametrize("keep_ratio", [0.4, 0.9])
def test_sigmoid_norm_without_shift_is_the_papers(
    space: UnitLayout, metric_U: Tensor, keep_ratio: float
) -> None:
    """Source: Paper, eq. A10, projected where the mean of one half is over the budget."""
    feasible_set = FeasibleSet(space, keep_ratio)
    normalized_U = normalize_metric(metric_U, space, "layer")
    s_U = sigmoid_norm(normalized_U, feasible_set, slope=1.0, shift_to_budget=False)
    plain_U = 1 / (1 + (-normalized_U).exp())
    torch.testing.assert_close(s_U, feasible_set.project(plain_U))
    assert torch.allclose(s_U, plain_U) == (keep_ratio == 0.9)


@pytest.mark.parametrize("scope", SCOPES)
def test_score_const_is_the_papers(space: UnitLayout, metric_U: Tensor, scope: BudgetScope) -> None:
    """Source: Paper, eq. A11: c where the metric's own mask keeps, 1 - c elsewhere."""
    feasible_set = FeasibleSet(space, 0.7, scope=scope)
    normalized_U = normalize_metric(metric_U, space, "layer")
    s_U = score_const(normalized_U, feasible_set, constant=0.8)
    kept_U = feasible_set.deterministic_mask(normalized_U)
    expected_U = torch.tensor([0.8 if kept else 1 - 0.8 for kept in kept_U], dtype=torch.float64)
    # 0.7 * 0.8 + 0.3 * 0.2 = 0.62 of the cost: inside the budget, so that nothing is projected.
    torch.testing.assert_close(s_U, expected_U)
    assert torch.equal(feasible_set.deterministic_mask(s_U), kept_U)


def test_score_const_over_the_budget_is_projected(space: UnitLayout, metric_U: Tensor) -> None:
    feasible_set = FeasibleSet(space, 0.3)  # 0.3 * 0.6 + 0.7 * 0.4 = 0.46
    normalized_U = normalize_metric(metric_U, space, "layer")
    s_U = score_const(normalized_U, feasible_set, constant=0.6)
    assert is_feasible(feasible_set, s_U)
    assert feasible_set.expected_keep_ratio(s_U) <= 0.3
    kept_U = feasible_set.deterministic_mask(normalized_U)
    for kind_U in (space.unit_costs_U == 70, space.unit_costs_U == 9):
        assert s_U[kept_U & kind_U].min() > s_U[~kept_U & kind_U].max()
