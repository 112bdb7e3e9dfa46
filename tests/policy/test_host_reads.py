"""A step never makes the host wait for the policy's numbers, but for one look at the outcome."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from pgprune_lightning.policy import (
    Antithetic,
    DenseLossControlVariate,
    ExploredLogits,
    FeasibleSet,
    FreeLogits,
    FreeProbabilities,
    GradientEstimator,
    LeaveOneOut,
    LinearSurrogate,
    MaskPolicy,
    MaskSpace,
    MovingAverageBaseline,
    PlainReinforce,
    ProjectedSGD,
    StructuredLogits,
    SymmetricExploration,
    host_reads,
    mask_generator,
)
from tests.exact_estimates import mask_samples
from tests.host_reads import HostReads


def test_reads_are_counted() -> None:
    values = torch.tensor([1.0, 2.0])
    with HostReads() as reads:
        if values[0] > 0:
            float(values.sum())
        values[values > 1]
        values.new_tensor(3.0)
    assert reads.names == ["_local_scalar_dense", "_local_scalar_dense", "index", "lift_fresh"]


@pytest.fixture
def _as_on_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_reads, "reading_is_free", lambda device: False)


def free_policy(space: MaskSpace, feasible: FeasibleSet) -> tuple[FreeProbabilities, ProjectedSGD]:
    policy = FreeProbabilities()
    policy.prepare(space, {})
    start_U = torch.full((space.num_units,), 0.6, dtype=torch.float64)
    policy.start_from(feasible.project(start_U), feasible)
    return policy, ProjectedSGD(policy, 0.01, partial(policy.after_step, feasible, 0))


@pytest.mark.usefixtures("_as_on_accelerator")
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("scope", ["per_kind", "units", "parameters", "per_layer"])
@pytest.mark.parametrize(
    "estimator",
    [
        MovingAverageBaseline(),
        MovingAverageBaseline(start="zero", order="update_then_use"),
        LeaveOneOut(),
        PlainReinforce(score_scale="standard_deviation"),
        Antithetic(),
        DenseLossControlVariate(MovingAverageBaseline()),
        LinearSurrogate(LeaveOneOut()),
        LinearSurrogate(DenseLossControlVariate(Antithetic())),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_step_is_read_once(
    space: MaskSpace, estimator: GradientEstimator, scope: Any, fill: bool
) -> None:
    feasible = FeasibleSet(space, 0.7, scope=scope, lower=0.01, upper=0.99, fill=fill)
    policy, optimizer = free_policy(space, feasible)
    estimator = copy.deepcopy(estimator)
    estimator.prepare(space, policy.keep_probabilities.detach())
    for step in range(3):
        losses_S = torch.tensor([3.0, 2.5, 3.5, 3.2], dtype=torch.float64) + step
        dense_S = losses_S - 1
        generator = mask_generator(0, step, 0)
        with HostReads() as reads:
            s_U = policy.keep_probabilities
            masks_SU = estimator.draw(s_U.detach(), 4, generator)
            samples = mask_samples(losses_S, masks_SU, s_U.detach(), dense_losses_S=dense_S)
            s_U.grad = estimator.estimate(samples)
            optimizer.step()
        assert reads.names == ["_local_scalar_dense"]
        assert feasible.contains(s_U)


@pytest.mark.usefixtures("_as_on_accelerator")
@pytest.mark.parametrize("scope", ["per_kind", "parameters", "per_layer"])
def test_or_later(space: MaskSpace, scope: Any) -> None:
    policy, optimizer = free_policy(space, FeasibleSet(space, 0.7, scope=scope))
    for value, stands in ((0.01, True), (float("nan"), False)):
        policy.keep_probabilities.grad = torch.full((space.num_units,), value, dtype=torch.float64)
        with HostReads() as reads, host_reads.reading_later() as verdicts:
            optimizer.step()
        assert reads.names == []
        assert [bool(verdict) for verdict in verdicts] == [stands]
        assert host_reads.HostCopy(verdicts[0]).read() == stands
    assert host_reads.all_hold([])


def test_explored_moves_are_not_read() -> None:
    s_U = torch.full((3,), 0.5, dtype=torch.float64)
    estimator = SymmetricExploration(3, lambda moves_SP: moves_SP > 0)
    generator = torch.Generator().manual_seed(0)
    losses_S = torch.linspace(3.0, 3.5, 4, dtype=torch.float64)
    with HostReads() as reads:
        masks_SU = estimator.draw(s_U, 4, generator)
        estimator.estimate(mask_samples(losses_S, masks_SU, s_U))
    assert reads.names == []


@pytest.mark.gpu
@pytest.mark.parametrize(
    "policy",
    [FreeProbabilities(), FreeLogits(), StructuredLogits(), ExploredLogits()],
    ids=lambda policy: type(policy).__name__,
)
@pytest.mark.parametrize("later", [False, True])
def test_a_gpu_is_waited_for_once_or_later(
    space: MaskSpace, policy: MaskPolicy, later: bool
) -> None:
    device, policy = torch.device("cuda"), copy.deepcopy(policy)
    feasible = FeasibleSet(space, 0.7, scope="parameters", fill=True)
    policy.prepare(space, {})
    estimator = (policy.own_estimator() or MovingAverageBaseline()).to(device)
    policy.to(device)
    if policy.feature_names:
        features_FU = torch.linspace(-1, 1, space.num_units, dtype=torch.float64)[None]
        policy.take_features(features_FU.to(device), slope=1.0)
    start_U = torch.full((space.num_units,), 0.6, dtype=torch.float64, device=device)
    policy.start_from(feasible.project(start_U), feasible)
    optimizer = ProjectedSGD(policy, 0.01, partial(policy.after_step, feasible, 0))
    losses_S = torch.linspace(3.0, 3.5, 4, dtype=torch.float64, device=device)
    for step in range(2):  # in the first, kernels are loaded
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                s_U = policy.keep_probabilities.detach()
                masks_SU = estimator.draw(s_U, 4, mask_generator(0, step, 0, device))
                gradient = estimator.estimate(mask_samples(losses_S, masks_SU, s_U))
                policy.assign_gradient(gradient, feasible, step)
                with host_reads.reading_later() if later else nullcontext() as verdicts:
                    optimizer.step()
                outcomes = [host_reads.HostCopy(verdict) for verdict in verdicts or []]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert all(outcome.read() for outcome in outcomes)
    assert len(outcomes) == later
    assert sum("synchronizing" in str(wait.message) for wait in waits) == (not later)
