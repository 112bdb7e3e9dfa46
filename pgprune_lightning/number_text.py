"""Numbers as a reader wants them: three or four figures, with a unit.

Every table, report and message writes its numbers by these functions, so that a unit means the same
everywhere: prefixes are powers of ten, 1 MB = 10^6 bytes and 1 GB = 10^9. Files of results hold
plain bytes and seconds.
"""

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
    """A size of memory or of a file: `833 MB`, `1.69 GB`."""
    number = finite(value)
    if number is None:
        return NOTHING
    number = float(f"{number:.3g}")  # before the unit is chosen: 999.7 MB is 1.00 GB
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= size:
            return f"{_three_figures(number / size)} {unit}"
    return f"{number:,.0f} B"


def seconds_text(value: object) -> str:
    """How long something took: `14.8 s`, `5 min 12 s`, `4 h 03 min`."""
    number = finite(value)
    if number is None:
        return NOTHING
    if round(number, 1) < 60:
        return f"{number:.1f} s"
    minutes, seconds = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def latency_text(value: object) -> str:
    """A time that may be milliseconds, to three figures: `12.3 ms`, `1.48 s`."""
    number = finite(value)
    if number is None or number >= 60:
        return seconds_text(value)
    number = float(f"{number:.3g}")
    return f"{_three_figures(number * 1000)} ms" if number < 1 else f"{_three_figures(number)} s"


def share_text(value: object, digits: int = 1) -> str:
    """A share in [0, 1] as percent: `84.2 %`."""
    number = finite(value)
    return NOTHING if number is None else f"{100 * number:.{digits}f} %"


def finite(value: object) -> float | None:
    """The number, or None where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits, from a damaged file
        return None
    return number if math.isfinite(number) else None


def _three_figures(number: float) -> str:
    digits = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:,.{digits}f}"
