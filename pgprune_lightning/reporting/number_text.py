"""Numbers as a reader wants them: three or four figures, with a unit."""

from __future__ import annotations

import math

NOTHING = "–"
"""Stands where a number is not known."""


def perplexity_text(value: object) -> str:
    """A perplexity: `71.98`, `1,799`."""
    number = finite(value)
    if number is None:
        return NOTHING
    digits = 2 if abs(number) < 100 else 1 if abs(number) < 1000 else 0
    return f"{number:,.{digits}f}"


def plain_text(value: object) -> str:
    """Any number to four figures; text and the like as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NOTHING if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def count_text(value: object) -> str:
    """A number of parameters: `260.0 k`, `134.5 M`, `6.74 B`."""
    number = finite(value)
    if number is None:
        return NOTHING
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:,.{2 if size == 1e9 else 1}f} {unit}"
    return f"{number:,.0f}"


def bytes_text(value: object) -> str:
    """A size: `1.69 GB`, in powers of ten."""
    number = finite(value)
    if number is None:
        return NOTHING
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,.0f} B"


def seconds_text(value: object) -> str:
    """A time: `14.8 s`, `5 min 12 s`, `4 h 03 min`."""
    number = finite(value)
    if number is None:
        return NOTHING
    if number < 60:
        return f"{number:.3g} s"
    minutes, seconds = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def share_text(value: object, digits: int = 1) -> str:
    """A share in [0, 1] as percent: `84.2 %`."""
    number = finite(value)
    return NOTHING if number is None else f"{100 * number:.{digits}f} %"


def finite(value: object) -> float | None:
    """The number, or None where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
