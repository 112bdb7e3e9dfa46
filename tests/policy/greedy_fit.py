"""What fits a budget, one unit at a time: what the program's faster ways are tested against."""

from __future__ import annotations

from collections.abc import Sequence


def greedy(values: Sequence[float], costs: Sequence[float], limit: float) -> list[bool]:
    """Go down the ranking one unit at a time; equal values rank by index."""
    kept = [False] * len(costs)
    for unit in sorted(range(len(costs)), key=lambda u: (-values[u], u)):
        if costs[unit] <= limit:
            kept[unit] = True
            limit -= costs[unit]
    return kept
