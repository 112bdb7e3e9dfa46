"""The values that results have: their names, and how the tables and pictures write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OVERFLOW = "overflow"
MISSING = "–"


@dataclass(frozen=True)
class Value:
    """A value that results have.

    Args:
        name: Its key, dotted where it stands in a group.
        title: Its name for a reader, with its unit.
        show: How it is written.
    """

    name: str
    title: str
    show: Callable[[float | None], str]


def number(value: float | None) -> str:
    """A perplexity with four figures or so."""
    if value is None:
        return OVERFLOW
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 100 else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """A time in seconds, or in minutes and hours where it is long."""
    if value is None:
        return MISSING
    minutes, rest = divmod(round(value), 60)
    if value < 60:
        return f"{value:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def parameters(value: float | None) -> str:
    """A count of parameters, in thousands or millions."""
    if value is None:
        return MISSING
    return f"{value / 1e6:,.1f} M" if value >= 1e7 else f"{value / 1e3:,.1f} k"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return MISSING if value is None else f"{value:.1%}"


def memory(value: float | None) -> str:
    """Bytes, in MiB."""
    return MISSING if value is None else f"{value / 2**20:,.0f} MiB"


def latency(value: float | None) -> str:
    """A time that may be milliseconds, with three figures."""
    if value is None or value >= 60:
        return seconds(value)
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


OTHER_VALUES = (
    Value("parameters", "parameters", parameters),
    Value("parameters_share", "of dense", share),
    Value("seconds", "time to make", seconds),
    Value("peak_memory_bytes", "peak memory", memory),
)
LATENCY_VALUES = (
    Value("latency.seconds", "latency", latency),
    Value("latency.parameter_bytes", "memory of weights", memory),
)
ZERO_SHOT_AVERAGE = Value("zero_shot_average", "zero-shot average", share)


def value_title(name: str) -> str:
    """A value's name for a reader, such as `perplexity at 128 tokens`."""
    titles = {value.name: value.title for value in (*OTHER_VALUES, ZERO_SHOT_AVERAGE)}
    return titles.get(name, name.replace("perplexity_", "perplexity at ") + " tokens")


def value_text(name: str, value: float) -> str:
    """A value as the tables write it."""
    shows = {other.name: other.show for other in (*OTHER_VALUES, ZERO_SHOT_AVERAGE)}
    return shows.get(name, number)(value)
