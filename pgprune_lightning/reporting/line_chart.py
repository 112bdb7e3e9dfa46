"""Lines over steps: what was learned when."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pgprune_lightning.number_text import plain_text
from pgprune_lightning.reporting.frame import (
    BOTTOM,
    LEFT,
    RIGHT_EDGE,
    TOP,
    drawing,
    figure,
    legend,
    step_axis,
    style_classes,
    text,
    value_axis,
)
from pgprune_lightning.reporting.markup import Markup, element, joined
from pgprune_lightning.reporting.scale import Scale, fitted
from pgprune_lightning.reporting.series import Point, Series, thinned
from pgprune_lightning.reporting.tables import details, table

HEIGHT = 236.0
MOST_POINTS = 160
MOST_TOUCHES = 40
MOST_ROWS = 40


@dataclass(frozen=True)
class LineChart:
    """Some series over one axis.

    Args:
        title: What is shown.
        y_label: What the values are, with their unit.
        series: Empty ones are left out.
        x_label: What is along the bottom.
        percent: Values are shares.
        from_zero: The axis begins at zero.
        spots: Single points with a name, such as the best.
        note: A remark under the title.
    """

    title: str
    y_label: str
    series: Sequence[Series]
    x_label: str = "step"
    percent: bool = False
    from_zero: bool = False
    spots: Sequence[tuple[Point, str, int]] = field(default=())
    note: str | None = None

    def draw(self) -> Markup | None:
        """The figure with its legend and its numbers; None without any point."""
        shown = [series for series in self.series if series.points]
        if not shown:
            return None
        # Thinned lines are scaled by their means: single wild steps would flatten them.
        ys = [bucket.y for series in shown for bucket in thinned(series.points, MOST_POINTS)]
        ys += [y for (_, y), _, _ in self.spots]
        xs = [x for series in shown for x, _ in series.points]
        bottom = HEIGHT - BOTTOM
        x_scale = Scale(min(xs), max(max(xs), min(xs) + 1), LEFT, RIGHT_EDGE)
        y_scale = fitted(ys, bottom, TOP, from_zero=self.from_zero)
        drawn = drawing(
            HEIGHT,
            self._description(shown),
            value_axis(y_scale, self.y_label, percent=self.percent),
            step_axis(x_scale, bottom, self.x_label),
            *(_range(series, x_scale, y_scale) for series in shown if series.with_range),
            *(_trace(series, x_scale, y_scale) for series in shown),
            *(_spot(spot, x_scale, y_scale) for spot in self.spots),
            _touches(shown, self.x_label, x_scale, bottom),
        )
        names = legend([(series.label, series.style) for series in shown])
        return figure(self.title, drawn, names, self._numbers(shown), note=self.note)

    def _description(self, shown: list[Series]) -> str:
        ends = "; ".join(
            f"{series.label} from {plain_text(series.points[0][1])} "
            f"to {plain_text(series.points[-1][1])}"
            for series in shown
        )
        return f"Line chart: {self.title}, over {self.x_label}. {ends}."

    def _numbers(self, shown: list[Series]) -> Markup:
        xs = _some_of(sorted({x for series in shown for x, _ in series.points}), MOST_ROWS)
        at = [dict(series.points) for series in shown]
        rows = [[plain_text(x), *(plain_text(values.get(x)) for values in at)] for x in xs]
        return details("Numbers", table([self.x_label, *(series.label for series in shown)], rows))


def _trace(series: Series, x_scale: Scale, y_scale: Scale) -> Markup:
    buckets = thinned(series.points, MOST_POINTS)
    points = " ".join(f"{x_scale(b.x):.1f},{_inside(y_scale, b.y):.1f}" for b in buckets)
    classes = style_classes(series.style)
    if len(buckets) == 1:
        x, y = points.split(",")
        return element("circle", cx=x, cy=y, r=3, class_=style_classes(series.style, "f"))
    return element("polyline", points=points, class_=f"trace {classes}")


def _range(series: Series, x_scale: Scale, y_scale: Scale) -> Markup | None:
    buckets = thinned(series.points, MOST_POINTS)
    if len(buckets) == len(series.points):
        return None
    upper = [(x_scale(b.x), _inside(y_scale, b.high)) for b in buckets]
    lower = [(x_scale(b.x), _inside(y_scale, b.low)) for b in reversed(buckets)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *lower])
    return element("polygon", points=points, class_=f"range {style_classes(series.style, 'f')}")


def _inside(scale: Scale, value: float) -> float:
    return scale(min(max(value, scale.low), scale.high))


def _spot(spot: tuple[Point, str, int], x_scale: Scale, y_scale: Scale) -> Markup:
    (x_value, y_value), name, style = spot
    x, y = x_scale(x_value), y_scale(y_value)
    near_right, near_top = x > (LEFT + RIGHT_EDGE) / 2, y < TOP + 26
    return joined(
        element("circle", cx=x, cy=y, r=4.5, class_=f"spot {style_classes(style, 'f')}"),
        text(
            x + (-4 if near_right else 4),
            y + (18 if near_top else -9),
            name,
            "end" if near_right else "start",
            "value",
        ),
    )


def _touches(shown: list[Series], x_label: str, scale: Scale, bottom: float) -> Markup:
    """Columns that say under the pointer what the lines are there."""
    xs = _some_of(sorted({x for series in shown for x, _ in series.points}), MOST_TOUCHES)
    edges = [(scale(left) + scale(right)) / 2 for left, right in pairwise(xs)]
    columns = []
    for x, start, end in zip(xs, [LEFT, *edges], [*edges, RIGHT_EDGE], strict=True):
        said = "\n".join(f"{series.label}: {plain_text(_nearest(series, x))}" for series in shown)
        columns.append(
            element(
                "rect",
                element("title", f"{x_label} {plain_text(x)}\n{said}"),
                x=start,
                y=TOP,
                width=max(end - start, 0.1),
                height=bottom - TOP,
                class_="touch",
            )
        )
    return joined(*columns)


def _nearest(series: Series, x: float) -> float:
    xs = [point[0] for point in series.points]
    after = min(bisect_left(xs, x), len(xs) - 1)
    before = max(after - 1, 0)
    return series.points[after if abs(xs[after] - x) <= abs(xs[before] - x) else before][1]


def _some_of(values: list[float], most: int) -> list[float]:
    """Evenly many of them, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]
