"""The ways are timed in turn, until the first limit."""

import time

import pytest
import torch

from pgprune_lightning.benchmark.timing import Limits, summary, time_in_turn

CPU = torch.device("cpu")


def test_ways_take_turns_and_warm_up_is_not_timed() -> None:
    calls: list[tuple[str, int]] = []
    ways = {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}
    times = time_in_turn(ways, Limits(steps=2, seconds=60), CPU)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}


def test_time_ends_it_and_one_step_is_always_timed() -> None:
    ways = {"slow": lambda number: time.sleep(0.02)}
    assert len(time_in_turn(ways, Limits(steps=10**6, seconds=0.15), CPU)["slow"]) in range(2, 9)
    assert len(time_in_turn(ways, Limits(steps=10, seconds=1e-9), CPU)["slow"]) == 1


def test_the_summary_is_of_the_median() -> None:
    found = summary([0.5, 0.1, 0.25], tokens=100)
    assert found["steps_per_second"] == 4
    assert found["tokens_per_second"] == 400
    assert (found["least_seconds"], found["greatest_seconds"]) == (0.1, 0.5)
    assert found["seconds"] == [0.5, 0.1, 0.25]
    assert found["median_seconds"] == pytest.approx(0.25)
