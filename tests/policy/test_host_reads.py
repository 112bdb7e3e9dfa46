"""A step never makes the host wait for the policy's numbers, but for one look at the outcome."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pgprune_lightning.policy import (
    FeasibleSet,
    FreeProbabilities,
    GradientEstimator,
    LeaveOneOut,
    MaskSpace,
    MovingAverageBaseline,
    PlainReinforce,
    ProjectedSGD,
    mask_generator,
    projection,
)
from tests.exact_estimates import mask_samples

WAITING = (
    "_local_scalar_dense",  # item(), float(), bool(), if
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique",
    "bincount",
    "lift_fresh",  # torch.tensor(number), which an accelerator gets by a copy
)


class HostReads(TorchDispatchMode):
    """Lists the operations after which the host waits, on an accelerator, for what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.").partition(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for argument in args
            if isinstance(argument, (list, tuple))
            for index in argument
        )
        if by_mask or name.startswith(WAITING):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


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
    monkeypatch.setattr(projection, "_reading_is_free", lambda device: False)


def free_policy(
    space: MaskSpace, feasible: FeasibleSet, device: str = "cpu"
) -> tuple[FreeProbabilities, ProjectedSGD]:
    policy = FreeProbabilities()
    policy.prepare(space, {})
    start_U = torch.full((space.num_units,), 0.6, dtype=torch.float64, device=device)
    policy.to(device).start_from(feasible.project(start_U), feasible)
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
    ],
    ids=["moving average", "from zero", "leave one out", "plain"],
)
def test_a_step_is_read_once(
    space: MaskSpace, estimator: GradientEstimator, scope: Any, fill: bool
) -> None:
    feasible = FeasibleSet(space, 0.7, scope=scope, lower=0.01, upper=0.99, fill=fill)
    policy, optimizer = free_policy(space, feasible)
    for step in range(3):
        losses_S = torch.tensor([3.0, 2.5, 3.5], dtype=torch.float64) + step
        generator = mask_generator(0, step, 0)
        with HostReads() as reads:
            masks_SU = policy.sample(3, generator)
            s_U = policy.keep_probabilities
            s_U.grad = estimator.estimate(mask_samples(losses_S, masks_SU, s_U.detach()))
            optimizer.step()
        assert reads.names == ["_local_scalar_dense"]
        assert feasible.contains(s_U)


@pytest.mark.gpu
def test_a_gpu_is_waited_for_once(space: MaskSpace) -> None:
    device = torch.device("cuda")
    feasible = FeasibleSet(space, 0.7, fill=True)
    policy, optimizer = free_policy(space, feasible, "cuda")
    estimator = MovingAverageBaseline().to(device)
    losses_S = torch.linspace(3.0, 3.5, 3, dtype=torch.float64, device=device)
    for step in range(2):  # in the first, kernels are loaded
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                masks_SU = policy.sample(3, mask_generator(0, step, 0, device))
                s_U = policy.keep_probabilities
                s_U.grad = estimator.estimate(mask_samples(losses_S, masks_SU, s_U.detach()))
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchronizing" in str(wait.message)]) == 1
