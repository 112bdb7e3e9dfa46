"""Timing several ways of doing the same, in turn, so that what else the machine does hits all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from pgprune_lightning.evaluation.latency import wait_for

Step = Callable[[int], object]
"""Does the work of a numbered step."""


@dataclass(frozen=True)
class Limits:
    """When timing ends, whichever comes first; each way is timed once at least.

    Args:
        steps: Timed steps of each way.
        seconds: Time for all ways together, after the warm-up.
    """

    steps: int
    seconds: float


def time_in_turn(
    ways: Mapping[str, Step], limits: Limits, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time each way, one after another, again and again.

    Args:
        ways: What is timed, by name.
        limits: When to stop.
        device: Where the work is done.
        warm_up: Steps of each way before, which are not timed.

    Returns:
        Seconds of every step of each way.
    """
    for way in ways.values():
        for number in range(warm_up):
            way(number)
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = perf_counter() + limits.seconds
    for number in range(warm_up, warm_up + limits.steps):
        start = perf_counter()
        for name, way in ways.items():
            times[name].append(seconds_of(way, number, device))
        if perf_counter() + (perf_counter() - start) > end:
            break
    return times


def seconds_of(way: Step, number: int, device: torch.device) -> float:
    """Seconds of one step, until the device has finished it."""
    wait_for(device)
    start = perf_counter()
    way(number)
    wait_for(device)
    return perf_counter() - start


def summary(seconds: list[float], tokens: int) -> dict[str, Any]:
    """Rates and spread of timed steps.

    Args:
        seconds: Of every step.
        tokens: Tokens that a step reads: of its batch, under every mask.
    """
    median = statistics.median(seconds)
    return {
        "steps_per_second": 1 / median,
        "tokens_per_second": tokens / median,
        "median_seconds": median,
        "least_seconds": min(seconds),
        "greatest_seconds": max(seconds),
        "seconds": seconds,
    }
