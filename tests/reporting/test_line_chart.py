import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgprune_lightning.reporting.line_chart import LineChart
from pgprune_lightning.reporting.series import Series, thinned


@given(st.integers(1, 1000), st.integers(1, 200))
def test_thinned_points_stand_for_all(count: int, limit: int) -> None:
    points = [(float(x), math.sin(x)) for x in range(count)]
    buckets = thinned(points, limit)
    assert len(buckets) <= limit
    assert min(bucket.low for bucket in buckets) == min(y for _, y in points)
    assert max(bucket.high for bucket in buckets) == max(y for _, y in points)
    size = math.ceil(count / limit)
    assert buckets[0].y == pytest.approx(sum(y for _, y in points[:size]) / min(size, count))


def test_a_line_goes_through_its_points() -> None:
    drawn = LineChart("Loss", "nats", [Series("loss", [(0, 4.0), (5, 6.0), (10, 5.0)])]).draw()
    assert drawn is not None
    (points,) = re.findall(r'<polyline points="([^"]+)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y2 < y0
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)


def test_one_point_is_a_dot_and_none_is_no_chart() -> None:
    one = LineChart("Loss", "nats", [Series("loss", [(3, 4.0)])]).draw()
    assert one is not None
    assert "<circle" in one
    assert LineChart("Loss", "nats", [Series("loss", [])]).draw() is None


def test_a_chart_is_xml_and_says_what_it_is() -> None:
    series = [
        Series(f"run <{number}>", [(x, x + number) for x in range(400)], number, with_range=True)
        for number in range(10)
    ]
    drawn = LineChart("A & B", "nats", series, spots=[((5.0, 5.0), "best <b>", 0)]).draw()
    assert drawn is not None
    svg = ElementTree.fromstring(drawn[drawn.index("<svg class") : drawn.index("</svg>") + 6])
    assert svg.attrib["role"] == "img"
    assert "A & B" in svg.attrib["aria-label"]
    assert "run <3> from 3 to 402" in svg.attrib["aria-label"]
    assert len(drawn) < 90_000
