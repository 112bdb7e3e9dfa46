"""What every policy must do: meet the budget, keep protected layers, follow the chain rule."""

from functools import partial

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    FeasibleSet,
    FreeLogits,
    FreeProbabilities,
    StructuredLogits,
    shift_logits,
)
from tests.policy_points import is_feasible

LOGIT_POLICIES = {
    "free_logits": FreeLogits,
    "structured": StructuredLogits,
    "structured_two_metrics": partial(StructuredLogits, features=["flap"]),
    "structured_free_heads": partial(StructuredLogits, free_kinds=["kv_group"]),
    "structured_then_free": partial(StructuredLogits, free_after=0, free_factor=0.5),
    "sharpened": partial(FreeLogits, final_sharpness=4.0),
}
POLICIES = {"free_probabilities": FreeProbabilities} | LOGIT_POLICIES
SCOPES = ["per_kind", "per_layer", "units", "parameters"]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def budget_of(space, scope="per_kind", keep_ratio=0.6):
    protected = () if scope == "per_layer" else (0,)
    return FeasibleSet(
        space,
        keep_ratio,
        scope=scope,
        protected_layers=protected,
        lower=0.02,
        upper=0.97,
        fill=True,
    )


def started(make, space, budget, lr_factors=None):
    policy = make()
    policy.prepare(space, lr_factors or {})
    policy.check_length(100)
    if policy.feature_names:
        policy.take_features(draw(len(policy.feature_names), 22, seed=1), slope=1.5)
    policy.start_from(budget.project(draw(22, seed=2).sigmoid()), budget)
    return policy


def step(policy, budget, steps_taken=0, seed=3, size=0.1):
    policy.assign_gradient(draw(22, seed=seed), budget, steps_taken)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None:
                parameter -= size * parameter.grad
    policy.project(budget, steps_taken + 1)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", POLICIES)
def test_steps_end_on_the_budget_and_spare_protected_layers(space, name, scope):
    budget = budget_of(space, scope)
    policy = started(POLICIES[name], space, budget)
    assert is_feasible(budget, policy.keep_probabilities)
    for steps_taken in range(5):
        before_U = policy.keep_probabilities.detach().clone()
        step(policy, budget, steps_taken, seed=steps_taken)
        s_U = policy.keep_probabilities.detach()
        assert is_feasible(budget, s_U)
        assert not torch.equal(s_U, before_U)
    if scope != "per_layer":
        assert (s_U[:8] == 1).all()


@pytest.mark.parametrize("name", POLICIES)
def test_a_falling_budget_is_followed(space, name):
    wide, narrow = budget_of(space, keep_ratio=0.8), budget_of(space, keep_ratio=0.5)
    policy = started(POLICIES[name], space, wide)
    policy.assign_gradient(draw(22), wide, 0)
    policy.project(narrow, 1)
    assert is_feasible(narrow, policy.keep_probabilities)


@pytest.mark.parametrize("name", POLICIES)
def test_settling_twice_changes_nothing(space, name):
    budget = budget_of(space)
    policy = started(POLICIES[name], space, budget)
    step(policy, budget)
    before_U = policy.keep_probabilities.detach().clone()
    policy.project(budget, 1)
    torch.testing.assert_close(policy.keep_probabilities.detach(), before_U, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scope", ["per_kind", "parameters"])
@pytest.mark.parametrize("name", LOGIT_POLICIES)
def test_the_chain_rule_is_that_of_finite_differences(space, name, scope):
    budget, g_U, small = budget_of(space, scope), draw(22), 1e-5
    policy = started(LOGIT_POLICIES[name], space, budget)
    step(policy, budget, 49, seed=7, size=0.3)  # off the start; half-way sharpened
    policy.assign_gradient(g_U, budget, 50)

    def at(parameter, index, shift):
        parameter.view(-1)[index] += shift
        policy.project(budget, 50)
        value = float(g_U @ policy.keep_probabilities)
        parameter.view(-1)[index] -= shift
        return value

    for parameter in policy.parameters():
        gradient = parameter.grad.reshape(-1).tolist()
        with torch.no_grad():
            measured = [
                (at(parameter, index, small) - at(parameter, index, -small)) / (2 * small)
                for index in range(parameter.numel())
            ]
        assert gradient == pytest.approx(measured, rel=1e-5, abs=1e-7)


def test_free_probabilities_start_and_rank_as_they_are(space):
    budget = FeasibleSet(space, 0.6)
    policy = FreeProbabilities()
    policy.prepare(space, {})
    s_U = budget.project(draw(22).sigmoid())
    policy.start_from(s_U, budget)
    assert torch.equal(policy.keep_probabilities, s_U)
    assert torch.equal(policy.ranking, s_U)
    assert list(policy.state_dict()) == ["keep_probabilities"]


def test_free_logits_start_where_free_probabilities_do(space):
    budget = budget_of(space)
    start_U = torch.rand(22, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start_U = budget.project(0.2 + 0.6 * start_U)
    policy = FreeLogits()
    policy.prepare(space, {})
    policy.start_from(start_U, budget)
    torch.testing.assert_close(policy.keep_probabilities, start_U, rtol=0, atol=1e-11)


def test_structured_logits_start_at_the_metric(space):
    budget = FeasibleSet(space, 0.6, fill=True)
    policy = StructuredLogits()
    policy.prepare(space, {})
    metric_U = draw(22)
    policy.take_features(metric_U[None], slope=2.0)
    policy.start_from(torch.full((22,), 0.6).double(), budget)
    expected_U = shift_logits(2 * metric_U, budget).sigmoid()
    torch.testing.assert_close(policy.keep_probabilities, expected_U, rtol=0, atol=1e-9)
    assert policy.offsets_and_slopes.shape == (6, 2)
    for make in (POLICIES["structured_free_heads"], POLICIES["structured_two_metrics"]):
        other = started(make, space, budget)
        first_U = other.features_FU[0]
        expected_U = shift_logits(1.5 * first_U, budget).sigmoid()
        torch.testing.assert_close(other.keep_probabilities, expected_U, rtol=0, atol=1e-9)


def test_free_logits_join_after_their_steps(space):
    budget = budget_of(space)
    policy = started(partial(StructuredLogits, free_after=2, free_factor=0.25), space, budget)
    for steps_taken in (0, 1):
        policy.assign_gradient(draw(22), budget, steps_taken)
        assert policy.added_logits.grad is None
        assert policy.natural_gradients(0.01)[1] is None
    policy.assign_gradient(draw(22), budget, 2)
    assert policy.added_logits.grad.abs().sum() > 0
    assert policy.natural_gradients(0.01)[1].abs().sum() > 0
    assert policy.step_factors()[1].tolist() == [0.25] * 22


def test_factors_reach_the_parameters_of_their_kind(space):
    make = partial(StructuredLogits, free_kinds=["kv_group"])
    policy = started(make, space, budget_of(space), {"mlp_channel": 0.1, "kv_group": 3.0})
    by_group, by_unit = policy.step_factors()
    assert by_group[:, 0].tolist() == [3.0, 0.1] * 3
    assert by_unit.tolist() == [3.0] * 6


def test_sharpness_grows_to_its_end(space):
    budget = budget_of(space)
    policy = started(partial(FreeLogits, final_sharpness=9.0), space, budget)
    flat_U, order = policy.keep_probabilities.clone(), policy.ranking.argsort()
    for steps_taken, sharpness in ((0, 1.0), (50, 3.0), (100, 9.0), (200, 9.0)):
        policy.project(budget, steps_taken)
        assert float(policy.sharpness) == pytest.approx(sharpness)
        assert is_feasible(budget, policy.keep_probabilities)
    variance, before = (float((s * (1 - s)).sum()) for s in (policy.keep_probabilities, flat_U))
    assert variance < 0.7 * before
    assert torch.equal(policy.ranking.argsort(), order)


@pytest.mark.parametrize("name", LOGIT_POLICIES)
def test_layer_bounds_are_refused(space, name):
    with pytest.raises(UserError, match="cannot hold layer_keep_ratios"):
        started(LOGIT_POLICIES[name], space, FeasibleSet(space, 0.5, layer_keep_ratios=(0.2, 0.9)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(FreeLogits, final_sharpness=0.0), "final_sharpness"),
        (partial(StructuredLogits, free_after=-1), "free_after"),
        (partial(StructuredLogits, free_factor=0.0), "free_factor"),
        (partial(StructuredLogits, free_kinds=["layer"]), "free_kinds: layer"),
    ],
)
def test_wrong_options_are_refused(space, make, message):
    with pytest.raises(UserError, match=message):
        started(make, space, budget_of(space))


def test_sharpening_needs_an_end():
    with pytest.raises(UserError, match="max_steps"):
        FreeLogits(final_sharpness=2.0).check_length(-1)
    FreeLogits().check_length(-1)
