import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgprune_lightning.reporting.scale import Scale, fitted

finite = st.floats(-1e9, 1e9, allow_nan=False)


def test_the_ends_are_where_they_belong() -> None:
    linear, logarithmic = Scale(2.0, 6.0, 100.0, 0.0), Scale(1.0, 100.0, 0.0, 200.0, True)
    assert [linear(2.0), linear(4.0), linear(6.0)] == [100.0, 50.0, 0.0]
    assert logarithmic(10.0) == pytest.approx(100.0)


@given(st.lists(finite, min_size=1, max_size=8), st.booleans())
@example(values=[1.0, 8.7e-109], from_zero=False)
def test_every_value_and_every_tick_is_inside(values: list[float], from_zero: bool) -> None:
    values = [abs(value) for value in values] if from_zero else values
    scale = fitted(values, 0.0, 300.0, from_zero=from_zero)
    assert all(-1e-6 <= scale(value) <= 300.0 + 1e-6 for value in values)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    assert all(-1e-3 <= scale(tick) <= 300.001 for tick in ticks)
    assert 2 <= len(ticks) <= 30


def test_ticks_are_round() -> None:
    assert Scale(0.0, 1.0, 0.0, 1.0).ticks(5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Scale(3.0, 203.0, 0.0, 1.0).ticks(4) == pytest.approx([50, 100, 150, 200])
    assert Scale(60.0, 2000.0, 0.0, 1.0, True).ticks() == pytest.approx([100, 200, 500, 1000, 2000])


def test_values_far_apart_are_shown_by_their_factors() -> None:
    assert fitted([60.0, 1300.0], 0.0, 1.0).logarithmic
    assert not fitted([60.0, 70.0], 0.0, 1.0).logarithmic
    assert not fitted([0.0, 1300.0], 0.0, 1.0).logarithmic
