"""How sampling, estimator, update and projection grow with the number of units.

Shapes: U units.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from pgprune_lightning.benchmark.timing import seconds_of
from pgprune_lightning.policy import (
    FeasibleSet,
    FreeProbabilities,
    MaskSamples,
    MovingAverageBaseline,
    ProjectedSGD,
    UnitLayout,
    mask_generator,
    sample_masks,
)

UNITS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
REPETITIONS = 5


def time_by_units(
    device: torch.device,
    *,
    keep_ratio: float,
    num_mask_samples: int,
    lr: float,
    units: tuple[int, ...] | None = None,
) -> list[dict[str, Any]]:
    """Time what a step does besides its forward passes.

    Args:
        device: Where the policy is.
        keep_ratio: Share of the units that stays.
        num_mask_samples: Masks drawn in a step (N_s).
        lr: Step size.
        units: Numbers of units; None: `UNITS`.

    Returns:
        For each: `units`, and median seconds as `sample_seconds`, `estimate_seconds` and
        `update_seconds`, which is the step and its projection.
    """
    return [_timed(count, device, keep_ratio, num_mask_samples, lr) for count in units or UNITS]


def _timed(
    count: int, device: torch.device, keep_ratio: float, num_masks: int, lr: float
) -> dict[str, Any]:
    space = UnitLayout.build([(0, "mlp_channel", count, 1, 0)], total_parameters=count)
    feasible_set = FeasibleSet(space, keep_ratio, fill=True)
    generator = torch.Generator().manual_seed(0)
    # Probabilities as a run has them in its middle: no two alike, some at the bounds.
    start_U = torch.rand(count, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    policy = FreeProbabilities()
    policy.prepare(space, {})
    policy.to(device).start_from(feasible_set.project(start_U.to(device)), feasible_set)
    estimator = MovingAverageBaseline().to(device)
    optimizer = ProjectedSGD(policy, lr, partial(policy.project, feasible_set, 0))
    losses_S = torch.linspace(3.0, 3.1, num_masks, dtype=torch.float64).to(device)
    probabilities_U = policy.keep_probabilities
    masks = {}

    def sample(number: int) -> None:
        generator = mask_generator(0, number, 0, device)
        masks["SU"] = sample_masks(probabilities_U, num_masks, generator)

    def estimate(number: int) -> None:
        del number
        samples = MaskSamples(masks["SU"], losses_S, probabilities_U.detach())
        probabilities_U.grad = estimator.estimate(samples)

    def update(number: int) -> None:
        del number
        optimizer.step()

    parts = {"sample_seconds": sample, "estimate_seconds": estimate, "update_seconds": update}
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(REPETITIONS + 1):
        for name, part in parts.items():
            times[name].append(seconds_of(part, number, device))
    # The first of each is the warm-up.
    return {"units": count} | {name: statistics.median(taken[1:]) for name, taken in times.items()}
