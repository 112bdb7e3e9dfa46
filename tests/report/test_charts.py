import math
import re
from collections import Counter
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgprune_lightning.report.charts import (
    LINES,
    VARIABLES,
    Chart,
    Series,
    averaged,
    keep_probability_map,
    line_chart,
    sparsity_chart,
)
from tests.report.conftest import CHANNELS, LAYERS, made_plan


def lines(*series: Series) -> Chart:
    drawn = line_chart("Loss", "nats", series)
    assert drawn is not None
    return drawn


def fills(chart: Chart) -> Counter[str]:
    """How many cells or bars have each of the page's colours."""
    # A shape is defined once and used where it recurs.
    return Counter(re.findall(r'style="fill: var\(--(\w+)\)', chart.svg))


def paths(chart: Chart, colour: str) -> list[list[tuple[float, float]]]:
    """The points of each stroke of a colour, in the drawing's units."""
    found = re.findall(rf'<path d="([^"]+)"[^>]*stroke: var\(--{colour}\)', chart.svg)
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path)]
        for path in found
    ]


@given(st.integers(1, 1000), st.integers(1, 200))
def test_averaged_points_stand_for_all(count: int, limit: int) -> None:
    points = [(float(x), math.sin(x)) for x in range(count)]
    buckets = averaged(points, limit)
    assert len(buckets) <= limit
    assert min(low for _, _, low, _ in buckets) == min(y for _, y in points)
    assert max(high for _, _, _, high in buckets) == max(y for _, y in points)
    size = math.ceil(count / limit)
    assert buckets[0][1] == pytest.approx(sum(y for _, y in points[:size]) / min(size, count))


def test_a_line_goes_through_its_points() -> None:
    ((left, middle, right),) = paths(lines(Series("loss", [(0, 4.0), (5, 6.0), (10, 5.0)])), "s0")
    assert middle[0] - left[0] == pytest.approx(right[0] - middle[0], abs=0.2)
    assert left[1] - right[1] == pytest.approx((left[1] - middle[1]) / 2, abs=0.2)
    assert left[1] > right[1]


def test_values_far_apart_are_shown_by_their_factors() -> None:
    points = [(0.0, 10.0), (1.0, 100.0), (2.0, 1000.0)]
    ((low, middle, high),) = paths(lines(Series("loss", points)), "s0")
    assert low[1] - middle[1] == pytest.approx(middle[1] - high[1], abs=0.2)


def test_one_point_is_a_dot_and_none_is_no_chart() -> None:
    one = lines(Series("loss", [(3, 4.0)]))
    assert "var(--s0)" in one.svg
    assert one.numbers.rows == [["3", "4"]]
    assert line_chart("Loss", "nats", [Series("loss", [])]) is None


def test_a_chart_is_xml_and_says_what_it_is() -> None:
    series = [
        Series(f"run <{number}>", [(x, x + number) for x in range(400)], number, with_range=True)
        for number in range(10)
    ]
    drawn = line_chart("A & B", "nats", series, spot=((5.0, 5.0), "best <b> & $x$"))
    assert drawn is not None
    svg = ElementTree.fromstring(drawn.svg)
    assert svg.attrib["role"] == "img"
    assert "A & B" in svg.attrib["aria-label"]
    assert "run <3> from 3 to 402" in svg.attrib["aria-label"]
    assert "best <b> & $x$" in [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [dashed for _, _, dashed in drawn.legend] == [False] * 8 + [True] * 2
    assert len(drawn.svg) < 110_000


def test_two_charts_share_no_ids() -> None:
    first, second = (
        set(re.findall(r'\bid="([^"]+)"', lines(Series("a", [(0, 1), (1, 2)])).svg))
        for _ in range(2)
    )
    assert first
    assert not first & second


def test_every_colour_of_a_chart_follows_the_theme() -> None:
    plan = made_plan(1, 5, 9.0)
    charts = [
        keep_probability_map(plan, "kv_group"),
        keep_probability_map(plan, "mlp_channel"),
        sparsity_chart(plan, "kv_group", made_plan(0, 0, None)),
        lines(Series("a", [(0, 1.0), (1, 99.0)]), Series("b", [(0, 1.0)], 1)),
    ]
    for chart in charts:
        assert re.findall(r"#[0-9a-f]{6}\b", chart.svg) == []
    assert len(VARIABLES) == len(set(VARIABLES.values())) == 4 + len(LINES) + 11


def test_each_of_few_units_is_a_cell() -> None:
    plan = made_plan(0, 5, 9.0)
    drawn = keep_probability_map(plan, "kv_group")
    units = plan.space.units_of("kv_group")
    levels = Counter(f"h{min(int(11 * float(s)), 10)}" for s in plan.keep_probabilities_U[units])
    key = Counter(f"h{level}" for level in range(11))
    assert {name: n for name, n in fills(drawn).items() if name[0] == "h"} == levels + key
    kept = plan.space.kept_by_kind(plan.mask_U)["kv_group"]
    assert sum(int(row[1].split()[0]) for row in drawn.numbers.rows) == kept
    assert len(re.findall(r"<use[^>]*fill: var\(--paper\)", drawn.svg)) == kept


def test_many_units_are_a_distribution() -> None:
    plan = made_plan(1, 5, 9.0)
    drawn = keep_probability_map(plan, "mlp_channel")
    shares = torch.stack(
        [
            torch.histc(plan.space.view(plan.keep_probabilities_U, layer, "mlp_channel"), 20, 0, 1)
            for layer in range(LAYERS)
        ]
    )
    assert int(shares.sum()) == LAYERS * CHANNELS
    levels = (11 * (shares / shares.max()).sqrt()).int().clamp(max=10).flatten().tolist()
    expected = Counter(f"h{level}" for level in levels) + Counter(f"h{n}" for n in range(11))
    assert {name: n for name, n in fills(drawn).items() if name[0] == "h"} == expected


def test_bars_are_the_removed_shares() -> None:
    before, after = made_plan(0, 0, None), made_plan(1, 5, 9.0)
    drawn = sparsity_chart(after, "kv_group", before)
    bars = re.findall(r'<path d="([^"]+)"[^>]*fill: var\(--s0\)', drawn.svg)
    heights = []
    for bar in bars:
        ys = [float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", bar)]
        heights.append(max(ys) - min(ys))
    all_removed = LAYERS - sum(
        float(after.space.view(after.mask_U, layer, "kv_group").double().mean())
        for layer in range(LAYERS)
    )
    for layer in range(LAYERS):
        removed, first = (
            1 - float(plan.space.view(plan.mask_U, layer, "kv_group").double().mean())
            for plan in (after, before)
        )
        shown = [str(layer), f"{100 * removed:.1f} %", f"{100 * first:.1f} %"]
        assert drawn.numbers.rows[layer] == shown
        assert heights[layer] / sum(heights) == pytest.approx(removed / all_removed, abs=0.01)
    strokes = [path for path in paths(drawn, "ink") if len(path) == 2]
    assert len(strokes) == LAYERS
