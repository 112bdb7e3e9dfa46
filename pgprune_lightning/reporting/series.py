"""Values over steps, thinned to what a chart of a few hundred pixels can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        label: Its name in the legend.
        points: (x, y), ascending in x, all finite.
        style: Which colour, from 0; above the number of colours they repeat, dashed.
        with_range: Show the range of what was thinned behind the line.
    """

    label: str
    points: Sequence[Point]
    style: int = 0
    with_range: bool = False


@dataclass(frozen=True)
class Bucket:
    """Neighbouring points as one.

    Args:
        x: Mean.
        y: Mean.
        low: Least y.
        high: Greatest y.
    """

    x: float
    y: float
    low: float
    high: float


def thinned(points: Sequence[Point], limit: int) -> list[Bucket]:
    """At most `limit` buckets of equally many points, the last perhaps of fewer.

    Args:
        points: (x, y), ascending in x.
        limit: Greatest number of buckets, at least 1.
    """
    size = max(1, -(-len(points) // limit))
    buckets = []
    for some in _batches(points, size):
        ys = [y for _, y in some]
        x = sum(x for x, _ in some) / len(some)
        buckets.append(Bucket(x, sum(ys) / len(ys), min(ys), max(ys)))
    return buckets


def _batches(points: Sequence[Point], size: int) -> list[Sequence[Point]]:
    return [points[start : start + size] for start in range(0, len(points), size)]
