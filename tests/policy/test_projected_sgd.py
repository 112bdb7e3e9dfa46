"""The optimizer: each step ends on the feasible set, and errors change nothing."""

import io

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import FeasibleSet, FreeProbabilities, MaskSpace, ProjectedSGD


def policy_of(*values):
    """Free probabilities that are clipped, and meet no budget."""

    class Clipped(FreeProbabilities):
        @torch.no_grad()
        def after_step(self, feasible_set=None, step=0):
            self.keep_probabilities.clamp_(0, 1)

    policy = Clipped()
    sizes = [(0, "mlp_channel", len(values), 1, 0)]
    policy.prepare(MaskSpace.build(sizes, total_parameters=len(values)), {})
    policy.start_from(torch.tensor(values, dtype=torch.float64), None)
    return policy


def optimizer_of(policy, lr, **options):
    return ProjectedSGD(policy, lr, policy.after_step, **options)


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
    optimizer = ProjectedSGD(policy, 0.1, lambda: policy.after_step(feasible, 1))
    s = policy.keep_probabilities
    for _ in range(50):
        s.grad = torch.randn(22, generator=generator, dtype=torch.float64) * 10
        expected = feasible.project(s.detach() - 0.1 * (s.grad * policy.lr_factors_U))
        optimizer.step()
        assert s.detach().equal(expected)
        assert feasible.contains(s)


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
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    space = MaskSpace.build([(0, "mlp_channel", 2, 1, 0)], total_parameters=2)
    feasible = FeasibleSet(space, 0.5)
    policy = FreeProbabilities()
    policy.prepare(space, {})
    policy.start_from(torch.tensor([0.5, 0.5], dtype=torch.float64), feasible)
    optimizer = ProjectedSGD(policy, 0.1, lambda: policy.after_step(feasible, 1), momentum=0.9)
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
