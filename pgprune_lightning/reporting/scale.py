"""From numbers to pixels, with ticks at round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOGARITHMIC_FROM = 8.0
"""A logarithmic axis shows more than a linear one where values differ by more than this factor."""

MOST_DECADES = 12
"""Ticks on a logarithmic axis that spans more decades than anyone counts."""


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis.

    Args:
        low: Least value shown.
        high: Greatest value shown, above `low`.
        start: Pixel of `low`.
        end: Pixel of `high`.
        logarithmic: Whether equal factors are equally far apart; then `low` is positive.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self._along(self.low), self._along(self.high)
        return self.start + (self.end - self.start) * (self._along(value) - low) / (high - low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis, about so many."""
        if not self.logarithmic:
            return _round_steps(self.low, self.high, count)
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            inside = [value for value in values if self.low <= value <= self.high]
            if len(inside) >= min(count, 4):
                return (
                    inside[:: math.ceil(len(inside) / MOST_DECADES)] if digits == (1,) else inside
                )
        return inside if len(inside) > 1 else _round_steps(self.low, self.high, count)

    def _along(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value


def fitted(values: list[float], start: float, end: float, *, from_zero: bool = False) -> Scale:
    """A scale that shows all values, logarithmic where they lie far apart.

    Args:
        values: Finite, at least one.
        start: Pixel of the least.
        end: Pixel of the greatest.
        from_zero: Begin at zero, linear.
    """
    low, high = min(values), max(values)
    if from_zero:
        return Scale(0.0, high if high > 0 else 1.0, start, end)
    if low > 0 and high / low > LOGARITHMIC_FROM:
        return Scale(low / 1.1, high * 1.1, start, end, logarithmic=True)
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    return Scale(low - margin, high + margin, start, end)


def _round_steps(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
