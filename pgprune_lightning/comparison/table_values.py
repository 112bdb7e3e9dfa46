"""The values that results have: their names, and how the tables and pictures write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgprune_lightning.number_text import (
    bytes_text,
    count_text,
    latency_text,
    perplexity_text,
    seconds_text,
    share_text,
)

OVERFLOW = "overflow"


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


def perplexity(value: float | None) -> str:
    """A perplexity; None stands for one that is too great for a number."""
    return OVERFLOW if value is None else perplexity_text(value)


OTHER_VALUES = (
    Value("parameters", "parameters", count_text),
    Value("parameters_share", "of dense", share_text),
    Value("seconds", "time to make", seconds_text),
    Value("peak_memory_bytes", "peak memory", bytes_text),
)
LATENCY_VALUES = (
    Value("latency.seconds", "latency", latency_text),
    Value("latency.parameter_bytes", "memory of weights", bytes_text),
)
ZERO_SHOT_AVERAGE = Value("zero_shot_average", "zero-shot average", share_text)


def value_title(name: str) -> str:
    """A value's name for a reader, such as `perplexity at 128 tokens`."""
    titles = {value.name: value.title for value in (*OTHER_VALUES, ZERO_SHOT_AVERAGE)}
    return titles.get(name, name.replace("perplexity_", "perplexity at ") + " tokens")


def value_text(name: str, value: float) -> str:
    """A value as the tables write it."""
    shows = {other.name: other.show for other in (*OTHER_VALUES, ZERO_SHOT_AVERAGE)}
    return shows.get(name, perplexity)(value)
