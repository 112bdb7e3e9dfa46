"""What every update must do with every policy: end on the budget, mean the same at any size."""

import copy
import io
import itertools
from functools import partial

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    Adam,
    FeasibleSet,
    FreeLogits,
    FreeProbabilities,
    NaturalGradient,
    ProjectedSGD,
    StructuredLogits,
    UnitLayout,
)
from tests.policy_points import is_feasible

UPDATES = {
    "sgd": ProjectedSGD,
    "momentum": partial(ProjectedSGD, momentum=0.9),
    "adam": Adam,
    "natural": NaturalGradient,
}
POLICIES = {
    "free_probabilities": FreeProbabilities,
    "free_logits": FreeLogits,
    "structured": partial(StructuredLogits, free_kinds=["kv_group"]),
    "structured_then_free": partial(StructuredLogits, free_after=1),
}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def space_of(num_units):
    """Two layers, a tenth of the units heads."""
    heads, channels = num_units // 20, num_units // 2 - num_units // 20
    sizes = []
    for layer in range(2):
        sizes += [(layer, "kv_group", heads, 30, 0), (layer, "mlp_channel", channels, 3, 0)]
    return UnitLayout.build(sizes, total_parameters=100 * num_units)


class Run:
    """A policy and its update, as training steps them."""

    def __init__(self, make_policy, make_update, num_units=40, lr=0.05, rule="fixed"):
        self.space = space_of(num_units)
        self.budget = FeasibleSet(self.space, 0.6, lower=0.01, upper=0.99, fill=True)
        self.policy = make_policy()
        self.policy.prepare(self.space, {})
        if self.policy.feature_names:
            self.policy.take_features(draw(1, num_units, seed=5), slope=1.0)
        start_U = self.budget.project(0.6 + 0.1 * draw(num_units, seed=6))
        self.policy.start_from(start_U, self.budget)
        self.steps = 0
        self.update = make_update(self.policy, lr, self.project, rule)

    def project(self):
        self.policy.project(self.budget, self.steps + 1)

    def step(self, gradient_U):
        self.policy.assign_gradient(gradient_U, self.budget, self.steps)
        self.update.step()
        self.steps += 1

    def probabilities(self):
        return self.policy.keep_probabilities.detach().clone()


@pytest.mark.parametrize("rule", ["fixed", "rms_change"])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("policy", POLICIES)
def test_steps_lower_a_linear_loss_on_the_budget(policy, update, rule):
    run = Run(POLICIES[policy], UPDATES[update], rule=rule)
    weights_U = draw(40, seed=7)
    losses = [float(weights_U @ run.probabilities())]
    for _ in range(5):
        run.step(weights_U)
        assert is_feasible(run.budget, run.probabilities())
        losses.append(float(weights_U @ run.probabilities()))
    assert all(after < before for before, after in itertools.pairwise(losses)), losses


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_update_goes_on_where_it_was(policy, update):
    whole, first = (Run(POLICIES[policy], UPDATES[update]) for _ in range(2))
    for step in range(4):
        whole.step(draw(40, seed=step))
    for step in range(2):
        first.step(draw(40, seed=step))
    file = io.BytesIO()
    torch.save((first.policy.state_dict(), first.update.state_dict()), file)
    file.seek(0)
    resumed = Run(POLICIES[policy], UPDATES[update])
    policy_state, update_state = torch.load(file, weights_only=True)
    resumed.policy.load_state_dict(policy_state)
    resumed.update.load_state_dict(update_state)
    resumed.steps = 2
    for step in range(2, 4):
        resumed.step(draw(40, seed=step))
    assert torch.equal(resumed.probabilities(), whole.probabilities())
    for ours, theirs in zip(resumed.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_size_means_the_same_at_every_size(policy, update):
    """Of 10^3 and of 10^6 units, and of gradients a thousand times as large: the same change."""
    if update != "sgd" and policy != "free_logits":
        sizes = ((1_000, 1.0), (1_000, 1e3))
    else:
        sizes = ((1_000, 1.0), (1_000, 1e3), (1_000_000, 1.0))
    for num_units, scale in sizes:
        run = Run(POLICIES[policy], UPDATES[update], num_units, lr=0.01, rule="rms_change")
        before_U = run.probabilities()
        run.step(scale * draw(num_units, seed=8))
        change = (run.probabilities() - before_U).square().mean().sqrt()
        assert float(change) == pytest.approx(0.01, rel=0.011), (num_units, scale)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("rule", ["fixed", "rms_change"])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_gradient_that_is_not_finite_changes_nothing(policy, update, rule, steps):
    run = Run(POLICIES[policy], UPDATES[update], rule=rule)
    for step in range(steps):
        run.step(draw(40, seed=step))
    before = copy.deepcopy((run.policy.state_dict(), run.update.state_dict()))
    gradient_U = draw(40)
    gradient_U[3] = float("nan")
    with pytest.raises(UserError, match="gradient of the keep probabilities is not finite"):
        run.step(gradient_U)
    for name, tensor in run.policy.state_dict().items():
        assert torch.equal(tensor, before[0][name]), name
    after = run.update.state_dict()["state"]
    torch.testing.assert_close(after, before[1]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("update", ["sgd", "momentum", "natural"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_that_leads_beyond_all_numbers_changes_nothing(policy, update):
    """The gradient is finite; found by the projection, or by the shift onto the budget."""
    run = Run(POLICIES[policy], UPDATES[update])
    run.step(draw(40))
    before = copy.deepcopy((run.policy.state_dict(), run.update.state_dict()["state"]))
    run.update.param_groups[0]["lr"] = 1e200
    with pytest.raises(UserError, match="not finite"):
        run.step(1e200 * draw(40))
    after = (run.policy.state_dict(), run.update.state_dict()["state"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_policy_that_cannot_change_stays_finite():
    run = Run(FreeProbabilities, ProjectedSGD, lr=0.9, rule="rms_change")
    for _ in range(3):
        run.step(draw(40))
    assert is_feasible(run.budget, run.probabilities())
    before_U = run.probabilities()
    run.step(torch.zeros(40, dtype=torch.float64))
    assert torch.equal(run.probabilities(), before_U)


def test_a_policy_that_cannot_change_refuses_a_gradient_that_is_not_finite():
    run = Run(FreeProbabilities, ProjectedSGD, rule="rms_change")
    with torch.no_grad():
        run.policy.keep_probabilities.copy_(torch.arange(40) % 2)
    nan_U = torch.full((40,), float("nan"), dtype=torch.float64)
    run.policy.assign_gradient(nan_U, run.budget, 0)
    with pytest.raises(UserError, match="not finite"):
        run.update.step()


def test_adam_is_that_of_torch():
    run = Run(FreeProbabilities, partial(Adam, mean_decay=0.8, square_decay=0.95), lr=1e-3)
    theirs = torch.nn.Parameter(run.probabilities())
    optimizer = torch.optim.Adam([theirs], lr=1e-3, betas=(0.8, 0.95))
    run.budget.project = lambda z_U: z_U
    for step in range(4):
        gradient_U = draw(40, seed=step)
        run.step(gradient_U)
        theirs.grad = gradient_U
        optimizer.step()
    torch.testing.assert_close(run.probabilities(), theirs.detach(), rtol=0, atol=1e-12)


def test_the_natural_step_of_probabilities_is_scaled_by_their_variance():
    run = Run(FreeProbabilities, partial(NaturalGradient, damping=1e-12), lr=0.01)
    s_U, gradient_U = run.probabilities(), draw(40)
    run.step(gradient_U)
    expected_U = run.budget.project(s_U - 0.01 * s_U * (1 - s_U) * gradient_U)
    torch.testing.assert_close(run.probabilities(), expected_U, rtol=0, atol=1e-12)


def test_natural_steps_agree_in_both_coordinates():
    """The way of the distribution does not depend on its coordinates, for small steps."""
    gradient_U, size = draw(40), 1e-6
    changes = []
    for policy in ("free_probabilities", "free_logits"):
        run = Run(POLICIES[policy], partial(NaturalGradient, damping=1e-9), lr=size)
        run.budget = FeasibleSet(run.space, 0.6, fill=True)  # a bound would bend the way
        run.policy.start_from(run.budget.project(torch.full((40,), 0.6).double()), run.budget)
        before_U = run.probabilities()
        run.step(gradient_U)
        changes.append((run.probabilities() - before_U) / size)
    torch.testing.assert_close(*changes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Adam, mean_decay=1.0), "mean_decay"),
        (partial(Adam, square_decay=-0.1), "square_decay"),
        (partial(NaturalGradient, damping=0.0), "damping"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        Run(FreeProbabilities, make)


def policy_of(*values):
    """Free probabilities that are clipped, and meet no budget."""

    class Clipped(FreeProbabilities):
        @torch.no_grad()
        def project(self, feasible_set=None, step=0):
            self.keep_probabilities.clamp_(0, 1)

    policy = Clipped()
    sizes = [(0, "mlp_channel", len(values), 1, 0)]
    policy.prepare(UnitLayout.build(sizes, total_parameters=len(values)), {})
    policy.start_from(torch.tensor(values, dtype=torch.float64), None)
    return policy


def optimizer_of(policy, lr, **options):
    return ProjectedSGD(policy, lr, policy.project, **options)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("scope", ["per_kind", "per_layer", "units", "parameters"])
def test_every_step_ends_on_the_feasible_set(space, scope, fill):
    protected = () if scope == "per_layer" else (0,)
    feasible = FeasibleSet(
        space, 0.7, scope=scope, protected_layers=protected, lower=0.01, upper=0.99, fill=fill
    )
    generator = torch.Generator().manual_seed(0)
    policy = FreeProbabilities()
    policy.prepare(space, {"mlp_channel": 0.3})
    policy.start_from(feasible.project(torch.full((22,), 0.5).double()), feasible)
    optimizer = ProjectedSGD(policy, 0.1, lambda: policy.project(feasible, 1))
    s = policy.keep_probabilities
    for _ in range(50):
        s.grad = torch.randn(22, generator=generator, dtype=torch.float64) * 10
        expected = feasible.project(s.detach() - 0.1 * (s.grad * policy.lr_factors_U))
        optimizer.step()
        assert s.detach().equal(expected)
        assert is_feasible(feasible, s)


def test_one_step_by_hand():
    policy = policy_of(0.5, 0.9)
    s = policy.keep_probabilities
    s.grad = torch.tensor([1.0, -4.0], dtype=torch.float64)
    optimizer_of(policy, 0.1).step()
    assert s.tolist() == [0.4, 1.0]


def test_momentum_adds_a_share_of_the_last_direction():
    policy = policy_of(1.0)
    s = policy.keep_probabilities
    optimizer = optimizer_of(policy, 0.1, momentum=0.5)
    values = []
    for gradient in (1.0, 1.0, -2.0):
        s.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        values.append(s.item())
    assert values == pytest.approx([0.9, 0.75, 0.875])  # directions 1, 1.5 and -1.25


def test_the_closure_runs_with_gradients_and_its_loss_is_returned():
    policy = policy_of(0.5)

    def closure():
        loss = (3 * policy.keep_probabilities).sum()
        loss.backward()
        return loss

    assert optimizer_of(policy, 0.1).step(closure).item() == 1.5
    assert policy.keep_probabilities.item() == pytest.approx(0.2)


def test_without_a_gradient_nothing_happens():
    policy = policy_of(5.0)
    optimizer_of(policy, 0.1).step()
    assert policy.keep_probabilities.item() == 5.0, "not even projected"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_first_gradient_that_is_not_finite_is_not_remembered(bad):
    space = UnitLayout.build([(0, "mlp_channel", 2, 1, 0)], total_parameters=2)
    feasible = FeasibleSet(space, 0.5)
    policy = FreeProbabilities()
    policy.prepare(space, {})
    policy.start_from(torch.tensor([0.5, 0.5], dtype=torch.float64), feasible)
    optimizer = ProjectedSGD(policy, 0.1, lambda: policy.project(feasible, 1), momentum=0.9)
    policy.keep_probabilities.grad = torch.tensor([0.0, bad], dtype=torch.float64)
    with pytest.raises(UserError, match="not finite"):
        optimizer.step()
    assert policy.keep_probabilities.tolist() == [0.5, 0.5]
    assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_the_step_size_must_be_positive(lr):
    with pytest.raises(UserError, match="step size"):
        optimizer_of(policy_of(0.5), lr)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_the_momentum_must_be_below_one(momentum):
    with pytest.raises(UserError, match="momentum"):
        optimizer_of(policy_of(0.5), 0.1, momentum=momentum)


def test_state_round_trips_without_pickled_code():
    optimizer = optimizer_of(policy_of(0.5), 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    optimizer.step()
    scheduler.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = optimizer_of(policy_of(0.5), 7.0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.1


def test_a_scheduler_sets_the_step_size():
    policy = policy_of(1.0)
    s = policy.keep_probabilities
    optimizer = optimizer_of(policy, 0.2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    values = []
    for _ in range(3):
        s.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        values.append(s.item())
    assert values == pytest.approx([0.8, 0.7, 0.65])
