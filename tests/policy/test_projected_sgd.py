"""The optimizer: each step ends on the feasible set, and errors change nothing."""

import io

import pytest
import torch

from pgprune_lightning.errors import UserError
from pgprune_lightning.policy import (
    BernoulliPolicy,
    FeasibleSet,
    ProjectedSGD,
    project_onto_budget,
)


def clip(values):
    return values.clamp(0, 1)


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("scope", ["per_kind", "per_layer", "units", "parameters"])
def test_every_step_ends_on_the_feasible_set(space, scope, fill):
    protected = () if scope == "per_layer" else (0,)
    feasible = FeasibleSet(
        space, 0.7, scope=scope, protected_layers=protected, lower=0.01, upper=0.99, fill=fill
    )
    generator = torch.Generator().manual_seed(0)
    policy = BernoulliPolicy(feasible.project(torch.full((22,), 0.5).double()))
    optimizer = ProjectedSGD(policy.parameters(), 0.1, feasible.project)
    for _ in range(50):
        s = policy.keep_probabilities
        s.grad = torch.randn(22, generator=generator, dtype=torch.float64) * 10
        expected = feasible.project(s.detach() - 0.1 * s.grad)
        optimizer.step()
        assert s.detach().equal(expected)
        assert feasible.contains(s)


def test_one_step_by_hand():
    s = parameter(0.5, 0.9)
    s.grad = torch.tensor([1.0, -4.0], dtype=torch.float64)
    ProjectedSGD([s], 0.1, clip).step()
    assert s.tolist() == [0.4, 1.0]


def test_the_closure_runs_with_gradients_and_its_loss_is_returned():
    s = parameter(0.5)
    optimizer = ProjectedSGD([s], 0.1, clip)

    def closure():
        loss = (3 * s).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.5
    assert s.item() == pytest.approx(0.2)


def test_without_a_gradient_nothing_happens():
    s = parameter(5.0)
    ProjectedSGD([s], 0.1, clip).step()
    assert s.item() == 5.0, "not even projected"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_no_parameter(bad):
    first, second = parameter(0.5), parameter(0.5, 0.5)
    first.grad = torch.ones(1, dtype=torch.float64)
    second.grad = torch.tensor([0.0, bad], dtype=torch.float64)
    with pytest.raises(UserError, match="gradient of the keep probabilities is not finite"):
        ProjectedSGD([first, second], 0.1, lambda z: project_onto_budget(z, 2.0)).step()
    assert first.tolist() == [0.5]
    assert second.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_the_step_size_must_be_positive(lr):
    with pytest.raises(UserError, match="step size"):
        ProjectedSGD([parameter(0.5)], lr, clip)


def test_state_round_trips_without_pickled_code():
    optimizer = ProjectedSGD([parameter(0.5)], 0.1, clip)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    optimizer.step()
    scheduler.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = ProjectedSGD([parameter(0.5)], 7.0, clip)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.1
    assert again.projection is clip


def test_a_scheduler_sets_the_step_size():
    s = parameter(1.0)
    optimizer = ProjectedSGD([s], 0.2, clip)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    values = []
    for _ in range(3):
        s.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        values.append(s.item())
    assert values == pytest.approx([0.8, 0.7, 0.65])
