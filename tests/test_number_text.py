"""Numbers for a reader: the unit that is written is the unit that is meant."""

import math

import pytest

from pgprune_lightning.number_text import (
    NOTHING,
    bytes_text,
    count_text,
    latency_text,
    perplexity_text,
    seconds_text,
)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (2**20, "1.05 MB"),
        (833_400_000, "833 MB"),
        (999_700_000, "1.00 GB"),
        (2**30, "1.07 GB"),
        (80_000_000_000, "80.0 GB"),
        (1.5e12, "1.50 TB"),
    ],
)
def test_prefixes_of_bytes_are_powers_of_ten(size: float, shown: str) -> None:
    assert bytes_text(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (61, "1 min 01 s"),
        (7260, "2 h 01 min"),
    ],
)
def test_times_are_short(seconds: float, shown: str) -> None:
    assert seconds_text(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.01234, "12.3 ms"), (0.9999, "1.00 s"), (1.483, "1.48 s"), (61, "1 min 01 s")],
)
def test_latencies_have_three_figures(seconds: float, shown: str) -> None:
    assert latency_text(seconds) == shown


@pytest.mark.parametrize("value", [None, "text", True, math.nan, math.inf, 10**400, [1]])
def test_what_is_no_number_is_none(value: object) -> None:
    for shown in (bytes_text, count_text, latency_text, perplexity_text, seconds_text):
        assert shown(value) == NOTHING
